package coredump

// limit is one byte: too little for a file, and the one value that also keeps Linux from handing a dump to a program that
// core_pattern names, which takes no notice of 0. Source: fs/coredump.c, "1 as a special value".
const limit = 1

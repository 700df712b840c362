//go:build !linux

package coredump

const limit = 0

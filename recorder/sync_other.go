//go:build !linux

package recorder

import "os"

func dataSync(f *os.File) error { return f.Sync() }

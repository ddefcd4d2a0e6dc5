//go:build !(cgo && seccomp)

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "probe: built without cgo or seccomp")
	os.Exit(1)
}

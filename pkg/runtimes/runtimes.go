// Package runtimes has the names by which users choose what runs a container, for those
// who check them, list them, and look for the programs behind them. Pure.
package runtimes

import "slices"

// Default runs containers unless another one is asked for. It is part of drover.
const Default = "drover"

// Others are the OCI runtimes that may be chosen by name, where a host has them.
var Others = []string{"runc", "crun"}

// Named reports whether name is the name of a runtime. Others are chosen by their path.
func Named(name string) bool { return name == Default || slices.Contains(Others, name) }

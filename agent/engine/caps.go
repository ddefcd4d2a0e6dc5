package engine

import "github.com/containerd/containerd/v2/pkg/cap"

func allCapabilities() []string { return cap.Known() }

// Package volumes says what the options of docker's volume driver local mean on a fleet:
// whether a volume's data is on a node, and what creating it could do to a host. It is pure.
package volumes

import (
	"slices"
	"strings"
)

const (
	// Local is the only driver.
	Local = "local"
	// LabelOn is a label, or an option, that names the nodes that may be a volume's home.
	LabelOn = "io.drover.on"
	// LabelAnonymous marks anonymous volumes, as in docker.
	LabelAnonymous = "com.docker.volume.anonymous"
)

// elsewhere are the filesystems whose data is on no node, or goes with its last user.
var elsewhere = []string{"nfs", "nfs4", "cifs", "smb3", "tmpfs"}

// hostly are the mount options that take a path of the host, whatever the type is.
var hostly = []string{"bind", "rbind", "move", "remount"}

// HasHome reports whether the data of a volume is on one node.
func HasHome(options map[string]string) bool {
	for word := range strings.SplitSeq(options["o"], ",") {
		if slices.Contains(hostly, nameOf(word)) {
			return true
		}
	}
	return !slices.Contains(elsewhere, options["type"])
}

// Mounted reports whether something is mounted on a volume's directory while it is used.
func Mounted(options map[string]string) bool {
	return options["device"] != "" || options["type"] != ""
}

// Rootly reports whether whoever creates a volume could reach what is the host's: with a
// path or device of it.
func Rootly(options map[string]string) bool {
	return Mounted(options) && HasHome(options)
}

// Unmountable returns the first of a volume's mount options that means something to
// mount(8) only, which docker does not run; "" if there is none.
func Unmountable(o string) string {
	for word := range strings.SplitSeq(o, ",") {
		name := nameOf(word)
		switch name {
		case "loop", "offset", "sizelimit", "encryption", "user", "users", "owner", "group", "helper", "uhelper", "fstab":
			return word
		}
		if strings.HasPrefix(name, "x-") || strings.HasPrefix(name, "verity.") {
			return word
		}
	}
	return ""
}

// nameOf returns the name of a mount option. mount(8) takes "bind=" for bind.
func nameOf(word string) string {
	name, _, _ := strings.Cut(word, "=")
	return strings.ToLower(strings.TrimSpace(name))
}

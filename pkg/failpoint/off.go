//go:build !failpoints

package failpoint

// Here does nothing in this build.
func Here(string) {}

// Error returns nil in this build.
func Error(string) error { return nil }

// Command probe loads the seccomp profile (of the OCI spec) that it reads, by way of a
// directory of compiled filters if one is named, and stops itself: a test then asks the
// kernel what was loaded. It is built with cgo and libseccomp.
package main

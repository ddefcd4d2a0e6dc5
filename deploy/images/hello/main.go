// Command hello prints a greeting from inside a container and explains how it got there.
package main

import "fmt"

const greeting = `
Hello from drover!
This message shows that your fleet is working.

To print it, drover took these steps:
 1. The CLI sent docker's own create request to a controller.
 2. The controller resolved the image's name to a digest, and a node pulled it
    from your registry when nobody had it.
 3. The proposer chose a node and committed run, task and placement to the
    replicated log, in one entry.
 4. The node's agent wrote the task to its own store, prepared snapshot and
    spec, and had containerd start it through a shim that outlives them all.
 5. The shim kept this text in the container's log, from where it streamed
    through the controller to your terminal.

To see where the milliseconds went:
 $ drover trace last

To try something more ambitious, run a shell in a container:
 $ drover run -it ubuntu /bin/sh
`

func main() { fmt.Print(greeting) }

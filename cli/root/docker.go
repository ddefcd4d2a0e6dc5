package root

import (
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// psFormat is docker's table with an additional column for the node.
const psFormat = `table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}\t{{.Label "io.drover.node"}}`

// volumesFormat is docker's table with an additional column for the home.
const volumesFormat = `table {{.Driver}}\t{{.Name}}\t{{.Label "io.drover.node"}}`

// imagesFormat is docker's classic table.
const imagesFormat = `table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{if .CreatedSince}}{{.CreatedSince}}{{else}}N/A{{end}}\t{{.Size}}`

// words replaces docker's terms in help texts by drover's. Those listed first stay
// unchanged.
var words = strings.NewReplacer("Dockerfile", "Dockerfile", "Docker Hub", "Docker Hub", "Docker Engine", "Docker Engine",
	"Docker daemon", "fleet", "the Docker CLI", "drover", "Docker", "drover", "docker ", "drover ")

// rename rewrites docker's help texts for drover.
func rename(c *cobra.Command) {
	c.Short, c.Long, c.Example = words.Replace(c.Short), words.Replace(c.Long), words.Replace(c.Example)
	if a, ok := c.Annotations["aliases"]; ok {
		c.Annotations["aliases"] = words.Replace(a)
	}
}

// shown reports whether args are a ps, or a list of volumes, with our table.
func shown(args []string) bool {
	ps := false
	for i, x := range args {
		switch {
		case x == "ps" && (i == 0 || !strings.HasPrefix(args[i-1], "-")), (x == "ls" || x == "list") && i > 0 && (args[i-1] == "container" || args[i-1] == "volume"):
			ps = true
		case ps && strings.HasPrefix(x, "-") && !strings.HasPrefix(x, "--") && strings.Contains(x, "q"): // names of volumes are no heading
			return false
		case x == "--format" || strings.HasPrefix(x, "--format="), x == "--quiet", x == "exec" || x == "run":
			return false
		}
	}
	return ps
}

// heading capitalizes the last word of the first line, like the others: docker's
// formatter prints a label's heading as given.
type heading struct {
	w    io.Writer
	line []byte // the first line, until it is complete
	done bool
}

// Write implements io.Writer.
func (h *heading) Write(p []byte) (int, error) {
	if h.done {
		return h.w.Write(p)
	}
	h.line = append(h.line, p...)
	first, rest, whole := strings.Cut(string(h.line), "\n")
	if !whole {
		return len(p), nil
	}
	h.done = true
	if title, is := strings.CutSuffix(strings.TrimRight(first, " "), "node"); is {
		first = title + "NODE"
	}
	if _, err := io.WriteString(h.w, first+"\n"+rest); err != nil {
		return 0, err
	}
	return len(p), nil
}

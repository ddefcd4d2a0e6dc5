// Package output formats tables, ages and enums for people. What is shown is up to the
// commands.
package output

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
)

// Table writes rows under a heading; cells are separated by tabs.
func Table(out io.Writer, heading string, rows []string) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(w, heading)
	for _, r := range rows {
		_, _ = fmt.Fprintln(w, r)
	}
	return w.Flush()
}

// Row joins cells.
func Row(cells ...any) string {
	out := make([]string, len(cells))
	for i, c := range cells {
		out[i] = fmt.Sprint(c)
	}
	return strings.Join(out, "\t")
}

// JSON writes v indented.
func JSON(out io.Writer, v any, indent string) error {
	e := json.NewEncoder(out)
	e.SetIndent("", indent)
	return e.Encode(v)
}

// Ago returns how long before now a time in Unix ns was.
func Ago(now time.Time, ns int64) string {
	return units.HumanDuration(now.Sub(time.Unix(0, ns))) + " ago"
}

// Pairs returns a map's entries, sorted by key.
func Pairs(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ",")
}

// Word returns an enum's value as shown to people, "" for the unspecified one.
func Word(v interface{ String() string }) string {
	s := v.String()
	if strings.HasSuffix(s, "UNSPECIFIED") {
		return ""
	}
	return strings.ToLower(strings.ReplaceAll(s, "_", " "))
}

// ShortID returns an id as shortened in listings.
func ShortID(id string) string { return id[:min(12, len(id))] }

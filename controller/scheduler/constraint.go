package scheduler

import (
	"fmt"
	"path"
	"slices"
	"strings"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

type constraint struct {
	key, pattern string
	not          bool
}

// parseConstraint parses key==value and key!=value. Values may be globs, with an
// optional ~ prefix (key==~glob). Keys are node (id or name), arch and os; anything
// else is a label.
func parseConstraint(s string) (constraint, error) {
	for _, op := range []string{"==", "!="} {
		key, value, ok := strings.Cut(s, op)
		key, value = strings.TrimSpace(key), strings.TrimPrefix(strings.TrimSpace(value), "~")
		if !ok || key == "" || value == "" {
			continue
		}
		if _, err := path.Match(value, ""); err != nil {
			return constraint{}, fmt.Errorf("invalid constraint %q: malformed pattern", s)
		}
		return constraint{key, value, op == "!="}, nil
	}
	return constraint{}, fmt.Errorf("invalid constraint %q: want key==value or key!=value, as in node==NAME", s)
}

// CheckConstraint returns why a constraint is invalid, or nil.
func CheckConstraint(s string) error {
	_, err := parseConstraint(s)
	return err
}

// NamesNode reports whether constraints name one node, so that their author knows
// which one it is.
func NamesNode(constraints []string) bool {
	return slices.ContainsFunc(constraints, func(s string) bool {
		c, err := parseConstraint(s)
		return err == nil && c.key == "node" && !c.not && !strings.ContainsAny(c.pattern, `*?[\\`)
	})
}

func (c constraint) matches(n *dv1.Node) bool {
	return c.has(n) != c.not
}

func (c constraint) has(n *dv1.Node) bool {
	// Patterns were checked when the constraint was parsed.
	glob := func(v string) bool { ok, _ := path.Match(c.pattern, v); return ok }
	switch c.key {
	case "node":
		return glob(n.Name) || glob(n.Id)
	case "arch":
		return glob(n.Capacity.GetArch())
	case "os":
		return glob(n.Capacity.GetOs())
	}
	v, ok := n.Labels[c.key]
	return ok && glob(v)
}

// Matches reports whether a node meets all constraints. It fails if one is invalid.
func Matches(n *dv1.Node, on []string) (bool, error) {
	for _, o := range on {
		c, err := parseConstraint(o)
		if err != nil {
			return false, err
		}
		if !c.matches(n) {
			return false, nil
		}
	}
	return true, nil
}

// Split splits a list of constraints at commas.
func Split(s string) (out []string) {
	for o := range strings.SplitSeq(s, ",") {
		if o = strings.TrimSpace(o); o != "" {
			out = append(out, o)
		}
	}
	return out
}

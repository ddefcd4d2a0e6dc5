package root

import (
	"strings"
	"testing"
)

// Our own commands say what they want in docker's words, which name the command.
func TestWrongArgumentsAreSaidInDockersWords(t *testing.T) {
	for args, want := range map[string]string{
		"node drain":            "'drover node drain' requires at least 1 argument",
		"node ls x":             "'drover node ls' accepts no arguments",
		"node pool add":         "'drover node pool add' requires 1 argument",
		"controller rm":         "'drover controller rm' requires at least 1 argument",
		"controller timing a b": "'drover controller timing' requires at most 1 argument",
		"controller recover x":  "'drover controller recover' accepts no arguments",
		"token create x":        "'drover token create' accepts no arguments",
		"trace last 3":          "'drover trace' requires at most 1 argument",
		"join":                  "'drover join' requires 1 argument",
		"up x":                  "'drover up' accepts no arguments",
	} {
		a := newApp("test")
		root, err := a.command(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		root.SetArgs(strings.Fields(args))
		if err := root.Execute(); err == nil || !strings.Contains(a.session.Explain(err), want) {
			t.Errorf("drover %s: %v, want %q", args, err, want)
		}
	}
}

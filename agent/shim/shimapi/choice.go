package shimapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/api/types/runc/options"
)

// choiceFile in a bundle has what runs the container: it must be known before the shim
// decides who reaps its children.
const choiceFile = "drover-runtime"

// Choice is what runs a container.
type Choice struct {
	Binary  string `json:"binary,omitempty"`  // an OCI runtime; "": the shim itself
	Filters string `json:"filters,omitempty"` // directory of compiled seccomp filters
}

// ChoiceOf returns the choice that runtime options make: their binary name, or the shim.
func ChoiceOf(o *options.Options) Choice {
	c := Choice{Binary: o.GetBinaryName()}
	if c.Native() && o.GetRoot() != "" {
		c.Filters = filepath.Join(filepath.Dir(o.GetRoot()), "seccomp")
	}
	return c
}

// Native reports whether the shim runs the container itself.
func (c Choice) Native() bool { return c.Binary == "" }

// ReadChoice reads a bundle's choice. A bundle without one is an earlier build's, whose
// containers are all run by runc.
func ReadChoice(bundle string) (Choice, error) {
	var c Choice
	b, err := os.ReadFile(filepath.Join(bundle, choiceFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Choice{Binary: "runc"}, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		return c, fmt.Errorf("reading which runtime is to be used: %w", err)
	}
	return c, nil
}

// WriteChoice records a bundle's choice.
func WriteChoice(bundle string, c Choice) error {
	b, err := json.Marshal(c)
	if err == nil {
		err = os.WriteFile(filepath.Join(bundle, choiceFile), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("recording which runtime is to be used: %w", err)
	}
	return nil
}

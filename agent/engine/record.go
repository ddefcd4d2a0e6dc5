package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover/drover/agent/network"
	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/durable"
	"github.com/drover/drover/pkg/failpoint"
	"github.com/drover/drover/pkg/life"
)

// specFile and attemptFile are the engine's own records of a task; with the labels of
// its snapshot they suffice to rebuild an agent's store.
const (
	specFile    = "spec.json"
	attemptFile = "attempt.json"
)

// attempt is the newest life of a task, durable before its process begins.
type attempt struct {
	Version  int       `json:"version"`
	Number   int32     `json:"number"`
	Restarts int32     `json:"restarts,omitempty"` // agents of earlier builds recorded first lives only
	Try      string    `json:"try,omitempty"`      // new for each try of the life
	LogStart uint64    `json:"logStart"`
	At       time.Time `json:"at"`
	Boot     string    `json:"boot"`
	Own      bool      `json:"own,omitempty"` // its shim is the agent's; false: earlier builds' started them through containerd
}

func (a attempt) life() life.Life { return life.Life{Attempt: a.Number, Restarts: a.Restarts} }

// prepared is kept from a task's preparation on. Later attempts are planned with the
// image's configuration, although the image may be gone by then.
type prepared struct {
	task.Spec
	ImageConfig *ocispec.ImageConfig `json:"imageConfig,omitempty"` // nil: written by an agent that did not keep it
	Root        []mount.Mount        `json:"root,omitempty"`        // the container's files; nil: the same

	sources []string // what is mounted by Mounts in an attempt that is being started
}

func (e *Engine) writeSpec(s prepared) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encoding the spec of %s: %w", short(s.ID), err)
	}
	if err := os.MkdirAll(e.o.dir(s.ID), 0o700); err != nil {
		return fmt.Errorf("making the folder of %s: %w", short(s.ID), err)
	}
	if err := failpoint.Error("engine.spec.before"); err != nil {
		return err
	}
	err = durable.WriteFile(filepath.Join(e.o.dir(s.ID), specFile), b, 0o600)
	failpoint.Here("engine.spec.after")
	return err
}

func (e *Engine) readSpec(id string) (prepared, error) {
	var s prepared
	return s, readJSON(filepath.Join(e.o.dir(id), specFile), &s)
}

// stageAttempt writes what becomes the current attempt when it is placed.
func (e *Engine) stageAttempt(id string, a attempt) (durable.Staged, error) {
	if err := failpoint.Error("engine.attempt.before"); err != nil {
		return durable.Staged{}, err
	}
	a.Version = 1
	b, err := json.Marshal(a)
	if err != nil {
		return durable.Staged{}, fmt.Errorf("encoding the attempt of %s: %w", short(id), err)
	}
	return durable.Stage(filepath.Join(e.o.dir(id), attemptFile), b, 0o600)
}

// placeAttempt makes a the current attempt; it is durable once the directory was synced.
// From then on its exit file links to the record of this try: what the shim of an earlier
// try writes, however late, is not mistaken for it.
func (e *Engine) placeAttempt(id string, a attempt, staged durable.Staged) error {
	if a.Try != "" {
		if err := pointTo(e.o.exitFile(id, a.life()), filepath.Base(e.o.recordFile(id, a))); err != nil {
			staged.Discard()
			return fmt.Errorf("recording attempt %s of %s: %w", a.life(), short(id), err)
		}
	}
	err := staged.Place()
	failpoint.Here("engine.attempt.after")
	return err
}

// writeAttempt durably makes a the current attempt.
func (e *Engine) writeAttempt(id string, a attempt) error {
	staged, err := e.stageAttempt(id, a)
	if err == nil {
		err = e.placeAttempt(id, a, staged)
	}
	if err == nil {
		err = durable.SyncDir(e.o.dir(id))
	}
	return err
}

// pointTo atomically makes path a link to name.
func pointTo(path, name string) error {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(name, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// forgetTry removes the traces of a try that failed.
func (e *Engine) forgetTry(id string, a attempt) error {
	var errs []error
	for _, f := range []string{e.o.exitFile(id, a.life()), e.o.recordFile(id, a), e.begunFile(id, a), shimapi.TimingsFile(e.o.recordFile(id, a))} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// readAttempt returns number 0 if nothing was started yet.
func (e *Engine) readAttempt(id string) (attempt, error) {
	var a attempt
	err := readJSON(filepath.Join(e.o.dir(id), attemptFile), &a)
	if errors.Is(err, task.ErrNotFound) {
		if _, serr := os.Stat(filepath.Join(e.o.dir(id), specFile)); serr == nil {
			return attempt{}, nil
		}
	}
	return a, err
}

// readExit returns nil until life l has ended. A record that can't be decoded proves
// that it ended, not how.
func (e *Engine) readExit(id string, l life.Life) (*dv1.Exit, error) {
	x, err := shimapi.ReadExit(e.o.exitFile(id, l))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if errors.Is(err, shimapi.ErrDamaged) {
		out := &dv1.Exit{Attempt: l.Attempt, Restarts: l.Restarts, Code: lostCode, Reason: err.Error()}
		i, serr := os.Stat(e.o.exitFile(id, l))
		if serr == nil {
			out.At = nano(i.ModTime())
		}
		return out, serr
	}
	if err != nil {
		return nil, err
	}
	return &dv1.Exit{Attempt: l.Attempt, Restarts: l.Restarts, Code: x.Code, At: x.At.UnixNano(), Oom: x.OOM, Started: nano(x.Started), LogEnd: x.LogEnd}, nil
}

// endedBefore returns how the last life before l that ended did, nil if none did.
func (e *Engine) endedBefore(id string, l life.Life) (*dv1.Exit, error) {
	files, err := os.ReadDir(e.o.dir(id))
	if err != nil {
		return nil, fmt.Errorf("looking for the exits of %s: %w", short(id), err)
	}
	var earlier []life.Life
	for _, f := range files {
		name, ok := strings.CutPrefix(f.Name(), exitPrefix)
		if x, err := life.Parse(name); ok && err == nil && x.Before(l) {
			earlier = append(earlier, x)
		}
	}
	slices.SortFunc(earlier, life.Life.Compare)
	for _, x := range slices.Backward(earlier) {
		if exit, err := e.readExit(id, x); exit != nil || err != nil {
			return exit, err
		}
	}
	return nil, nil
}

// exitBefore returns how the last life before l of the same attempt ended, nil if there
// was none.
func (e *Engine) exitBefore(id string, l life.Life) (*dv1.Exit, error) {
	if l.Restarts == 0 {
		return nil, nil
	}
	x, err := e.endedBefore(id, l)
	if x.GetAttempt() != l.Attempt {
		return nil, err
	}
	return x, err
}

func readJSON(path string, to any) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", filepath.Base(filepath.Dir(path)), task.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	if err := json.Unmarshal(b, to); err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	return nil
}

// place fills in an attempt's place in the node's own network. That in networks of the
// fleet is the fleet's choice.
func place(a *task.Attempt, in *network.Sandbox) {
	if in == nil {
		return
	}
	a.Ports = in.Ports()
	i := slices.IndexFunc(in.Endpoints, func(e network.Endpoint) bool { return e.Network == network.Bridge })
	if i < 0 {
		return
	}
	e := in.Endpoints[i]
	a.IP, a.PrefixLen, a.Gateway, a.MAC = e.IPv4().Addr().String(), e.IPv4().Bits(), e.Gateway.String(), e.MAC
}

func nano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// Package identity is the layout of a host's identities below its data directory: who
// its agent, controller and admin are, and which controllers the agent dials. A host
// gets these by joining a fleet; a fleet's first host creates its own
// (controller/bootstrap).
package identity

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/drover/drover/pkg/durable"
)

// Host is the content of identity.json: who this host's agent is, and whom it dials.
type Host struct {
	Version     int      `json:"version"`
	Cluster     string   `json:"cluster"`
	Node        string   `json:"node"` // the node's id
	Name        string   `json:"name"`
	Controllers []string `json:"controllers"` // host:port
}

// version of identity.json.
const version = 1

// ControllerDir holds the controller's identity, log and settings.
func ControllerDir(dataDir string) string { return filepath.Join(dataDir, "controller") }

// ControllerPKI, AgentPKI and AdminPKI hold one identity each, as pki.LoadFiles reads it.
func ControllerPKI(dataDir string) string { return filepath.Join(ControllerDir(dataDir), "pki") }
func AgentPKI(dataDir string) string      { return filepath.Join(dataDir, "agent", "pki") }
func AdminPKI(dataDir string) string      { return filepath.Join(dataDir, "admin") }

// HostFile holds a Host.
func HostFile(dataDir string) string { return filepath.Join(dataDir, "agent", "identity.json") }

// TimingFile is where a controller keeps raft's timing for its next start.
func TimingFile(dataDir string) string { return filepath.Join(ControllerDir(dataDir), "timing") }

// BootstrapDir holds a new fleet's identities until its first entry is committed. It
// exists as a whole or not at all.
func BootstrapDir(dataDir string) string { return filepath.Join(dataDir, "bootstrap") }

// IsMember reports whether this host has an identity in a fleet.
func IsMember(dataDir string) bool { return exists(filepath.Join(AgentPKI(dataDir), "cert.pem")) }

// HasController reports whether this host is one of the fleet's controllers.
func HasController(dataDir string) bool {
	return exists(ControllerFile(dataDir))
}

// ControllerFile returns the file that exists exactly where a host has a controller.
func ControllerFile(dataDir string) string {
	return filepath.Join(ControllerPKI(dataDir), "cert.pem")
}

// Load reads the host's identity. The error wraps fs.ErrNotExist if there is none.
func Load(dataDir string) (*Host, error) {
	path := HostFile(dataDir)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading this host's identity: %w", err)
	}
	h := new(Host)
	if err := json.Unmarshal(b, h); err != nil {
		return nil, fmt.Errorf("reading this host's identity in %s: %w", path, err)
	}
	if h.Version != version || h.Cluster == "" || h.Node == "" {
		return nil, fmt.Errorf("%s is not an identity of version %d", path, version)
	}
	return h, nil
}

// WriteFile writes h durably to path, in the version of this build.
func WriteFile(path string, h Host) error {
	h.Version = version
	b, err := json.MarshalIndent(h, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding this host's identity: %w", err)
	}
	return durable.WriteFile(path, append(b, '\n'), 0o600)
}

// SaveControllers records where the fleet's controllers are.
func SaveControllers(dataDir string, controllers []string) error {
	h, err := Load(dataDir)
	if err != nil {
		return err
	}
	h.Controllers = controllers
	return WriteFile(HostFile(dataDir), *h)
}

// RemoveController moves a controller's files aside and deletes the admin's identity:
// the host continues as an agent.
func RemoveController(dataDir string) error {
	from := ControllerDir(dataDir)
	if err := os.RemoveAll(from + ".removed"); err != nil {
		return fmt.Errorf("moving a removed controller's files aside: %w", err)
	}
	if err := os.Rename(from, from+".removed"); err != nil {
		return fmt.Errorf("moving a removed controller's files aside: %w", err)
	}
	if err := os.RemoveAll(AdminPKI(dataDir)); err != nil {
		return fmt.Errorf("removing the admin's identity: %w", err)
	}
	return durable.SyncDir(dataDir)
}

// NewID returns a new id of a cluster or a host: 32 hex digits.
func NewID() (string, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return "", fmt.Errorf("making an id: %w", err)
	}
	return hex.EncodeToString(b), nil
}

func exists(path string) bool { _, err := os.Lstat(path); return err == nil }

// Package config reads a host's configuration from a file, the environment and flags,
// over defaults, and records the origin of each value. Unknown keys are errors.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/viper"

	"github.com/drover/drover/pkg/registry"
	"github.com/drover/drover/pkg/timing"
)

// DefaultFile is read if it exists and no other file is named.
const DefaultFile = "/etc/drover/config.yaml"

// maxRunDir leaves room for the names of the shims' sockets.
const maxRunDir = 39

// Config is the configuration of a host.
type Config struct {
	ClusterName      string            `mapstructure:"cluster-name"`
	DataDir          string            `mapstructure:"data-dir"`
	RunDir           string            `mapstructure:"run-dir"`
	NodeName         string            `mapstructure:"node-name"`
	Advertise        string            `mapstructure:"advertise"`
	ControllerListen string            `mapstructure:"controller-listen"`
	AgentListen      string            `mapstructure:"agent-listen"`
	GossipListen     string            `mapstructure:"gossip-listen"`
	MirrorListen     string            `mapstructure:"mirror-listen"`
	Bridge           string            `mapstructure:"bridge"`
	SubnetPool       string            `mapstructure:"subnet-pool"`
	NetworkPool      string            `mapstructure:"network-pool"`
	Doors            bool              `mapstructure:"doors"`
	RaftTiming       string            `mapstructure:"raft-timing"`
	Spares           int               `mapstructure:"spares"`
	LogLevel         string            `mapstructure:"log-level"`
	Labels           map[string]string `mapstructure:"labels"`
	Registries       []Registry        `mapstructure:"registries"`
	origin           map[string]string
}

// Registry describes how one registry is reached.
type Registry struct {
	Name       string `mapstructure:"name"`
	Endpoint   string `mapstructure:"endpoint"`
	PlainHTTP  bool   `mapstructure:"plain-http"`
	SkipVerify bool   `mapstructure:"skip-verify"`
	CAFile     string `mapstructure:"ca-file"`
	Username   string `mapstructure:"username"`
	Password   string `mapstructure:"password"`
}

// Load reads file ("" is DefaultFile, if it exists), DROVER_* variables of the
// environment, and set (key to value, of the flags that were given).
func Load(file string, set map[string]string) (*Config, error) {
	v := viper.NewWithOptions(viper.KeyDelimiter("\x00")) // labels may contain dots
	origin := map[string]string{}
	for _, k := range Keys {
		v.SetDefault(k.Name, k.initial)
		origin[k.Name] = "default"
	}
	path := file
	if path == "" {
		path = DefaultFile
	}
	v.SetConfigFile(path)
	v.SetConfigType("yaml")
	if err := v.ReadInConfig(); err != nil {
		if file != "" || !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("reading the configuration %s: %w", path, err)
		}
		path = ""
	}
	for _, k := range v.AllKeys() {
		if top, _, _ := strings.Cut(k, "\x00"); !known(top) {
			return nil, fmt.Errorf("the configuration %s has the unknown key %q%s", path, top, nearest(top))
		} else if v.InConfig(top) {
			origin[top] = path
		}
	}
	for _, k := range Keys {
		env := "DROVER_" + strings.ToUpper(strings.ReplaceAll(k.Name, "-", "_"))
		if x, ok := os.LookupEnv(env); ok && !k.structured {
			v.Set(k.Name, x)
			origin[k.Name] = env
		}
		if x, ok := set[k.Name]; ok {
			v.Set(k.Name, x)
			origin[k.Name] = "--" + k.Name
		}
	}
	c := &Config{origin: origin}
	strict := func(d *mapstructure.DecoderConfig) { d.ErrorUnused = true }
	if err := v.Unmarshal(c, strict); err != nil {
		return nil, fmt.Errorf("reading the configuration %s: %w", path, err)
	}
	return c, c.check()
}

func (c *Config) check() error {
	if c.NodeName == "" {
		h, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("finding this host's name: %w", err)
		}
		c.NodeName = h
	}
	for key, p := range map[string]*string{"data-dir": &c.DataDir, "run-dir": &c.RunDir} {
		if *p == "" {
			return fmt.Errorf("%s is empty", key)
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		*p = abs
	}
	if len(c.RunDir) > maxRunDir {
		return fmt.Errorf("run-dir %s is %d characters long: sockets' paths are limited, use at most %d", c.RunDir, len(c.RunDir), maxRunDir)
	}
	if len(c.Bridge) == 0 || len(c.Bridge) > 15 {
		return fmt.Errorf("bridge %q must have 1 to 15 characters", c.Bridge)
	}
	if c.Spares < 0 {
		return fmt.Errorf("spares is %d: 0 is none", c.Spares)
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel) {
		return fmt.Errorf("log-level %q is none of debug, info, warn, error", c.LogLevel)
	}
	if _, err := timing.Parse(c.RaftTiming); err != nil {
		return fmt.Errorf("raft-timing: %w", err)
	}
	_, err := registry.New(c.Mirrors())
	return err
}

// Mirrors returns the registries as pkg/registry takes them.
func (c *Config) Mirrors() []registry.Mirror {
	var out []registry.Mirror
	for _, r := range c.Registries {
		out = append(out, registry.Mirror(r))
	}
	return out
}

// Origin reports where a key's value came from: default, a file, a variable or a flag.
func (c *Config) Origin(key string) string { return c.origin[key] }

// nearest suggests the key that was probably meant.
func nearest(key string) string {
	best, at := "", 4
	for _, k := range Keys {
		if d := distance(strings.ReplaceAll(strings.ToLower(key), "_", "-"), k.Name); d < at {
			best, at = k.Name, d
		}
	}
	if best == "" {
		return "; known are " + strings.Join(names(), ", ")
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		prev := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := prev
			if a[i] != b[j] {
				cost++
			}
			prev = row[j+1]
			row[j+1] = min(cost, row[j]+1, prev+1)
		}
	}
	return row[len(b)]
}

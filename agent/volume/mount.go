package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"github.com/drover/drover/agent/task"
)

// Mounting is a mount that a volume's options ask for.
type Mounting struct {
	Type, Device, Options string
	Dir                   string
}

// mount mounts a volume's device unless it is mounted. It is called in the volume's turn.
func (s *Store) mount(ctx context.Context, x task.Volume) error {
	dir := s.Path(x.ID)
	if is, err := mounted(dir); err != nil || is {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.MountWithin)
	defer cancel()
	m, err := resolved(ctx, x.Options)
	if m.Dir = dir; err == nil {
		err = s.o.Mount(ctx, m)
	}
	if err == nil {
		return nil
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %v", s.o.MountWithin)
	}
	// A mount that was given up may have been made after all.
	err = errors.Join(err, unmount(dir))
	return fmt.Errorf("failed to mount local volume %s (%s %s): %s", x.Name, x.Options["type"], x.Options["device"], masked(err.Error()))
}

// password is that of a share, which is in the options and in errors about them.
var password = regexp.MustCompile(`(password2?=)[^,\s]*`)

func masked(s string) string { return password.ReplaceAllString(s, "$1********") }

// resolved returns what options mount, with addresses in place of names: the kernel takes
// no others.
func resolved(ctx context.Context, options map[string]string) (Mounting, error) {
	m := Mounting{Type: options["type"], Device: options["device"], Options: options["o"]}
	if m.Type != "cifs" && m.Type != "nfs" && m.Type != "nfs4" && m.Type != "smb3" {
		return m, nil
	}
	words := strings.Split(m.Options, ",")
	for i, w := range words {
		if name, ok := strings.CutPrefix(w, "addr="); ok {
			ip, err := lookUp(ctx, name)
			if err != nil {
				return m, err
			}
			words[i] = "addr=" + ip
			m.Options = strings.Join(words, ",")
			return m, nil
		}
	}
	if m.Type != "cifs" && m.Type != "smb3" {
		return m, nil
	}
	u, err := url.Parse(m.Device)
	if err != nil {
		return m, fmt.Errorf("error parsing mount device url: %w", err)
	}
	if u.Host == "" || net.ParseIP(u.Host) != nil {
		return m, nil
	}
	if u.Host, err = lookUp(ctx, u.Host); err != nil {
		return m, err
	}
	if m.Device, err = url.QueryUnescape(u.String()); err != nil {
		return m, fmt.Errorf("failed to unescape device URL: %w", err)
	}
	return m, nil
}

func lookUp(ctx context.Context, name string) (string, error) {
	if net.ParseIP(name) != nil {
		return name, nil
	}
	ips, err := net.DefaultResolver.LookupIPAddr(ctx, name)
	if err != nil || len(ips) == 0 {
		return "", fmt.Errorf("error resolving passed in network volume address: %w", err)
	}
	return ips[0].String(), nil
}

// killedWithin bounds how long a killed mount(8) may take to end: the kernel lets go of a
// server that doesn't answer once its caller is killed.
const killedWithin = 5 * time.Second

// mount8 runs mount(8), in a process of its own: a mount that waits for a server ends only
// with the process that asked for it. Helpers of filesystems, which would run programs for
// options, are left out as docker leaves them out.
func mount8(ctx context.Context, m Mounting) error {
	args := []string{"-i", "-n", "-t", m.Type}
	if m.Options != "" {
		args = append(args, "-o", m.Options)
	}
	cmd := exec.CommandContext(ctx, "mount", append(args, "--", m.Device, m.Dir)...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = killedWithin
	if err := cmd.Run(); err != nil {
		if words := strings.TrimSpace(said.String()); words != "" {
			return errors.New(words)
		}
		return fmt.Errorf("mount: %w", err)
	}
	return nil
}

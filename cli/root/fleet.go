package root

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/cli/cli"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/drover/drover/controller/fleetapi"
)

// call asks the fleet API. to may be nil.
func (a *app) call(cmd *cobra.Command, method, path string, body, to any) error {
	h, err := a.target.HTTP()
	if err != nil {
		return err
	}
	var b []byte
	if body != nil {
		if b, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(cmd.Context(), method, "http://drover/drover/v1/"+path, bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("asking the fleet: %w", err)
	}
	resp, err := h.Do(req)
	if err != nil {
		return fmt.Errorf("nothing answers at %s: start it there (drover up), or name another host with -H: %w", a.target.Host, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode >= 300 {
		var m struct {
			Message string `json:"message"`
		}
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		if json.Unmarshal(b, &m) != nil || m.Message == "" {
			m.Message = resp.Status
		}
		return errors.New("drover: " + m.Message)
	}
	if to == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(to); err != nil {
		return fmt.Errorf("reading the fleet's answer: %w", err)
	}
	return nil
}

func table(out io.Writer, head string, rows func(row func(format string, a ...any))) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(w, head)
	rows(func(format string, a ...any) { _, _ = fmt.Fprintf(w, format+"\n", a...) })
	return w.Flush()
}

func ago(ns int64) string {
	return units.HumanDuration(time.Since(time.Unix(0, ns))) + " ago"
}

func parent(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs}
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("drover: unknown command: drover %s %s\n\nRun 'drover %s --help' for more information", c.Name(), args[0], c.Name())
		}
		return cmd.Help()
	}
	c.AddCommand(subs...)
	return c
}

func (a *app) nodeCommand() *cobra.Command {
	ls := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List the nodes of this fleet", Args: cli.NoArgs}
	quiet := ls.Flags().BoolP("quiet", "q", false, "Names only")
	ls.RunE = func(cmd *cobra.Command, _ []string) error {
		var all []fleetapi.Node
		if err := a.call(cmd, http.MethodGet, "nodes", nil, &all); err != nil {
			return err
		}
		if *quiet {
			for _, n := range all {
				_, _ = fmt.Fprintln(cmd.OutOrStdout(), n.Name)
			}
			return nil
		}
		return table(cmd.OutOrStdout(), "NAME\tSTATUS\tAVAILABILITY\tCONTROLLER\tADDRESS\tSUBNET\tRUNNING\tCPUS\tMEMORY\tLABELS", func(row func(string, ...any)) {
			for _, n := range all {
				status := n.Status
				if n.Silent != 0 {
					status += fmt.Sprintf(" (silent for %s)", time.Since(time.Unix(0, n.Silent)).Round(time.Second))
				}
				role := n.Controller
				if role == "" {
					role = "-"
				}
				row("%s\t%s\t%s\t%s\t%s\t%s\t%d/%d\t%g\t%s\t%s", n.Name, status, n.Availability, role, n.Addr, n.Subnet, n.Running, n.Containers, n.CPUs, units.BytesSize(float64(n.Memory)), pairs(n.Labels))
			}
		})
	}
	inspect := &cobra.Command{Use: "inspect NODE...", Short: "Show all about nodes", Args: cli.RequiresMinArgs(1)}
	inspect.RunE = func(cmd *cobra.Command, args []string) error {
		out := []fleetapi.Node{}
		for _, name := range args {
			var n fleetapi.Node
			if err := a.call(cmd, http.MethodGet, "nodes/"+url.PathEscape(name), nil, &n); err != nil {
				return err
			}
			out = append(out, n)
		}
		e := json.NewEncoder(cmd.OutOrStdout())
		e.SetIndent("", "    ")
		return e.Encode(out)
	}
	update := func(use, short string, change func(args []string) (fleetapi.UpdateNode, []string, error)) *cobra.Command {
		c := &cobra.Command{Use: use, Short: short, Args: cli.RequiresMinArgs(1)}
		c.RunE = func(cmd *cobra.Command, args []string) error {
			u, names, err := change(args)
			if err != nil {
				return err
			}
			for _, name := range names {
				if err := a.call(cmd, http.MethodPost, "nodes/"+url.PathEscape(name), u, nil); err != nil {
					return err
				}
				_, _ = fmt.Fprintln(cmd.OutOrStdout(), name)
			}
			return nil
		}
		return c
	}
	label := update("label NODE KEY=VALUE... [KEY-...]", "Set labels of a node, or take them away (KEY-)", func(args []string) (fleetapi.UpdateNode, []string, error) {
		u := fleetapi.UpdateNode{Set: map[string]string{}}
		for _, x := range args[1:] {
			k, v, set := strings.Cut(x, "=")
			name, drop := strings.CutSuffix(x, "-")
			switch {
			case set && k != "":
				u.Set[k] = v
			case drop && name != "":
				u.Drop = append(u.Drop, name)
			default:
				return u, nil, fmt.Errorf("drover: %q is neither KEY=VALUE nor KEY-", x)
			}
		}
		if len(u.Set)+len(u.Drop) == 0 {
			return u, nil, errors.New("drover: which label? KEY=VALUE sets one, KEY- takes it away")
		}
		return u, args[:1], nil
	})
	drain := update("drain NODE...", "Place nothing new on nodes; what runs there goes on", func(args []string) (fleetapi.UpdateNode, []string, error) {
		return fleetapi.UpdateNode{Availability: "drain"}, args, nil
	})
	activate := update("activate NODE...", "Place containers on nodes again", func(args []string) (fleetapi.UpdateNode, []string, error) {
		return fleetapi.UpdateNode{Availability: "active"}, args, nil
	})
	uid, role := 0, ""
	grant := update("grant NODE --uid UID --role ROLE", "Say what a user of a host without a controller may do through its socket", func(args []string) (fleetapi.UpdateNode, []string, error) {
		return fleetapi.UpdateNode{Roles: map[string]string{fmt.Sprint(uid): role}}, args, nil
	})
	grant.Long = "Say what a user of a host without a controller may do through its socket. The role user makes containers, and reaches those, that are not root on their host: without binds, privileges, devices, added capabilities or the host's namespaces. The role admin may do everything, and so is root on every host of the fleet."
	grant.Flags().IntVar(&uid, "uid", 0, "User id on that host")
	grant.Flags().StringVar(&role, "role", "user", "user, admin, or \"\" for none")
	rm := &cobra.Command{Use: "rm NODE...", Aliases: []string{"remove"}, Short: "Forget nodes that are gone, and revoke their identities", Args: cli.RequiresMinArgs(1)}
	force := rm.Flags().BoolP("force", "f", false, "Also if the node is up, or has containers, which are forgotten")
	rm.RunE = func(cmd *cobra.Command, args []string) error {
		for _, name := range args {
			path := "nodes/" + url.PathEscape(name)
			if *force {
				path += "?force=1"
			}
			if err := a.call(cmd, http.MethodDelete, path, nil, nil); err != nil {
				return err
			}
			_, _ = fmt.Fprintln(cmd.OutOrStdout(), name)
		}
		return nil
	}
	return parent("node", "Manage the nodes of this fleet", ls, inspect, label, drain, activate, grant, rm, a.poolCommand())
}

// poolCommand shows and extends where nodes' subnets come from.
func (a *app) poolCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "pool", Short: "List the address pools that nodes' subnets come from", Args: cli.NoArgs,
		Long: "List the address pools that nodes' subnets come from. Each node owns a /24, which it keeps; a pool is used when those before it are used up.",
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		var all []fleetapi.Pool
		if err := a.call(cmd, http.MethodGet, "pools", nil, &all); err != nil {
			return err
		}
		return table(cmd.OutOrStdout(), "POOL\tNODES\tUSED", func(row func(string, ...any)) {
			for _, p := range all {
				row("%s\t%d\t%d", p.Pool, p.Nodes, p.Used)
			}
		})
	}
	add := &cobra.Command{Use: "add NETWORK", Short: "Let more nodes join: add an address pool, such as 10.224.0.0/12", Args: cli.ExactArgs(1)}
	add.RunE = func(cmd *cobra.Command, args []string) error {
		if err := a.call(cmd, http.MethodPost, "pools", fleetapi.Pool{Pool: args[0]}, nil); err != nil {
			return err
		}
		_, _ = fmt.Fprintln(cmd.OutOrStdout(), args[0])
		return nil
	}
	c.AddCommand(add)
	return c
}

func pairs(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ",")
}

// controllerCommands are ls, rm and timing, beside the command that runs one.
func (a *app) controllerCommands() []*cobra.Command {
	ls := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List the controllers of this fleet", Args: cli.NoArgs}
	ls.RunE = func(cmd *cobra.Command, _ []string) error {
		var all []fleetapi.Member
		if err := a.call(cmd, http.MethodGet, "controllers", nil, &all); err != nil {
			return err
		}
		return table(cmd.OutOrStdout(), "NAME\tROLE\tADDRESS\tJOINED\tID", func(row func(string, ...any)) {
			for _, m := range all {
				row("%s\t%s\t%s\t%s\t%.12s", m.Name, m.Role, m.Addr, ago(m.Joined), m.ID)
			}
		})
	}
	rm := &cobra.Command{Use: "rm CONTROLLER...", Short: "Take controllers out of the quorum, and revoke their identities", Args: cli.RequiresMinArgs(1)}
	rm.RunE = func(cmd *cobra.Command, args []string) error {
		for _, name := range args {
			if err := a.call(cmd, http.MethodDelete, "controllers/"+url.PathEscape(name), nil, nil); err != nil {
				return err
			}
			_, _ = fmt.Fprintln(cmd.OutOrStdout(), name)
		}
		return nil
	}
	timing := &cobra.Command{
		Use: "timing [lan|wan|HEARTBEAT/ELECTION/LEASE]", Short: "Show or set how fast the controllers notice that their leader is gone", Args: cli.RequiresMaxArgs(1),
		Long: "Show or set raft's timeouts, one set for all controllers of the fleet.\n" +
			"lan is 150ms/150ms/100ms; wan is 2s/2s/1.5s, for controllers that are far apart or on busy machines.\n" +
			"HEARTBEAT: a follower that hears nothing for as long begins an election. ELECTION: one without a winner begins anew after as long.\n" +
			"LEASE: a leader that reaches no majority for as long steps down; half of HEARTBEAT at least, all of it at most.\n" +
			"Setting it costs one election. Leaders that change without anything being broken are a reason for longer ones.",
	}
	timing.RunE = func(cmd *cobra.Command, args []string) error {
		var t fleetapi.Timing
		if len(args) > 0 {
			if err := a.call(cmd, http.MethodPost, "timing", fleetapi.Timing{Timing: args[0]}, nil); err != nil {
				return err
			}
		}
		if err := a.call(cmd, http.MethodGet, "timing", nil, &t); err != nil {
			return err
		}
		if t.Timing != t.Numbers {
			t.Timing += " (" + t.Numbers + ")"
		}
		_, _ = fmt.Fprintln(cmd.OutOrStdout(), t.Timing)
		return nil
	}
	return []*cobra.Command{ls, rm, timing}
}

func (a *app) tokenCommand() *cobra.Command {
	create := &cobra.Command{Use: "create", Short: "Make a token that hosts join with; it is shown once", Args: cli.NoArgs}
	n := fleetapi.NewToken{}
	create.Flags().StringVar(&n.Role, "role", "agent", "What the hosts become: controller (with an agent), or agent")
	create.Flags().StringVar(&n.SocketRole, "socket-role", "", "What root may do through the socket of a host without a controller: user or admin (nothing if empty)")
	create.Flags().DurationVar(&n.TTL, "ttl", fleetapi.DefaultTTL, "How long the token is good: a year at most")
	quiet := create.Flags().BoolP("quiet", "q", false, "Print the token only")
	create.RunE = func(cmd *cobra.Command, _ []string) error {
		var t fleetapi.TokenInfo
		if err := a.call(cmd, http.MethodPost, "tokens", n, &t); err != nil {
			return err
		}
		if *quiet {
			_, _ = fmt.Fprintln(cmd.OutOrStdout(), t.Text)
			return nil
		}
		addr := "ADDR"
		var all []fleetapi.Member
		if a.call(cmd, http.MethodGet, "controllers", nil, &all) == nil && len(all) > 0 {
			addr = all[0].Addr
		}
		_, _ = fmt.Fprintf(cmd.OutOrStdout(), "On each host that shall join as %s:\n\n  drover join %s --token %s\n\n", map[string]string{"controller": "a controller", "agent": "an agent"}[t.Role], addr, t.Text)
		_, _ = fmt.Fprintf(cmd.OutOrStdout(), "The token is good for %s; drover token revoke %s ends it.\n", time.Duration(t.Expires-t.Created).Round(time.Second), t.ID)
		return nil
	}
	ls := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List tokens, without their secrets", Args: cli.NoArgs}
	ls.RunE = func(cmd *cobra.Command, _ []string) error {
		var all []fleetapi.TokenInfo
		if err := a.call(cmd, http.MethodGet, "tokens", nil, &all); err != nil {
			return err
		}
		return table(cmd.OutOrStdout(), "ID\tROLE\tCREATED\tGOOD\tUSED", func(row func(string, ...any)) {
			for _, t := range all {
				good := "for ever"
				switch left := time.Until(time.Unix(0, t.Expires)); {
				case t.Revoked:
					good = "revoked"
				case t.Expires != 0 && left <= 0:
					good = "expired"
				case t.Expires != 0:
					good = "for " + units.HumanDuration(left)
				}
				row("%s\t%s\t%s\t%s\t%d times", t.ID, t.Role, ago(t.Created), good, t.Used)
			}
		})
	}
	revoke := &cobra.Command{Use: "revoke ID...", Aliases: []string{"rm"}, Short: "Have tokens admit nobody any more", Args: cli.RequiresMinArgs(1)}
	revoke.RunE = func(cmd *cobra.Command, args []string) error {
		for _, id := range args {
			if err := a.call(cmd, http.MethodDelete, "tokens/"+url.PathEscape(id), nil, nil); err != nil {
				return err
			}
			_, _ = fmt.Fprintln(cmd.OutOrStdout(), id)
		}
		return nil
	}
	return parent("token", "Manage the tokens that hosts join with", create, ls, revoke)
}

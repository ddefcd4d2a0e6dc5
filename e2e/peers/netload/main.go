// Command netload makes traffic between containers, and says how much there was, for
// make bench: busybox has nothing for it.
//
//	netload serve             takes what the others send, until it is killed
//	netload send HOST         one stream to a server: Gbit/s that arrived
//	netload connect HOST      connections to a server, one after the other: how many a second
//	netload ask NAME          questions for a name: answers a second
//	netload await NAME        says "asking"; then, once the name has an address, the time in ns
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	span   = time.Second // of what is measured
	atOnce = 8           // who connect or ask
	// Ports of a server.
	sinkPort = "5001"
	meetPort = "5002"
	// resolver is that of drover's containers, as of docker's.
	resolver = "127.0.0.11:53"
)

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "netload:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	var rate float64
	switch {
	case len(args) == 1 && args[0] == "serve":
		return serve(ctx)
	case len(args) != 2:
		return errors.New("what is to be done to which host or name?")
	case args[0] == "send":
		rate, err = send(net.JoinHostPort(args[1], sinkPort), span)
	case args[0] == "connect":
		rate, err = perSecond(span, func(end time.Time) (int, error) { return meet(net.JoinHostPort(args[1], meetPort), end) })
	case args[0] == "ask":
		rate, err = perSecond(span, func(end time.Time) (int, error) { return ask(resolver, args[1], end) })
	case args[0] == "await":
		return await(ctx, resolver, args[1], out)
	default:
		return fmt.Errorf("there is no %q", args[0])
	}
	if err == nil {
		_, err = fmt.Fprintln(out, rate)
	}
	return err
}

// perSecond has several do something until the end of a span, and returns how much all did
// in a second.
func perSecond(d time.Duration, do func(end time.Time) (int, error)) (float64, error) {
	var all errgroup.Group
	var done [atOnce]int
	begin := time.Now()
	for i := range done {
		all.Go(func() (err error) {
			done[i], err = do(begin.Add(d))
			return err
		})
	}
	if err := all.Wait(); err != nil {
		return 0, err
	}
	total := 0
	for _, n := range done {
		total += n
	}
	return float64(total) / time.Since(begin).Seconds(), nil
}

package client

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/drover/drover/pkg/trace"
)

// On a host's own socket, spans are read although whoever sent them did not wait, and is
// gone before anybody accepts the connection.
func TestSpansAreLeftOnTheSocket(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	sink, err := (&Session{Target: Target{Host: "unix://" + filepath.Join(dir, "s")}}).Spans()
	if err != nil {
		t.Fatal(err)
	}
	big := &tracepb.ResourceSpans{SchemaUrl: strings.Repeat("x", 64<<10)}
	if err := sink.Add(t.Context(), []*tracepb.ResourceSpans{big}); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	r, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r.Body)
	if err != nil || r.Method != http.MethodPost || r.URL.Path != trace.Path || !strings.Contains(string(b), big.SchemaUrl) {
		t.Errorf("%s %s with %d bytes (%v)", r.Method, r.URL.Path, len(b), err)
	}
}

// Over a network, what was written may be lost when the connection is closed: the answer
// is waited for, and a refusal is an error.
func TestSpansForAnotherHostAreWaitedFor(t *testing.T) {
	for status, fails := range map[string]bool{"200 OK": false, "503 Service Unavailable": true} {
		here, there := net.Pipe()
		read := make(chan string, 1)
		go func() {
			defer func() { _ = there.Close() }()
			r, err := http.ReadRequest(bufio.NewReader(there))
			if err != nil {
				read <- err.Error()
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			read <- r.URL.Path
			_, _ = io.WriteString(there, "HTTP/1.1 "+status+"\r\nContent-Length: 0\r\n\r\n")
		}()
		dial := oneWay(func(context.Context, string, string) (net.Conn, error) { return here, nil })
		sink := &trace.Remote{HTTP: &http.Client{Transport: dial}, URL: func() string { return "http://drover" }}
		if err := sink.Add(t.Context(), []*tracepb.ResourceSpans{{}}); (err != nil) != fails {
			t.Errorf("%s: %v", status, err)
		}
		if path := <-read; path != trace.Path {
			t.Errorf("%s: asked was %s", status, path)
		}
	}
}

func TestSpansForNobody(t *testing.T) {
	if _, err := (&Session{Target: Target{Host: "unix://%zz"}}).Spans(); err == nil {
		t.Error("a host that is no URL is dialed")
	}
}

package controller

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/unixsock"
)

// A stream of a container that says nothing ends with its client, or with the
// controller, whatever the client speaks: nobody waits for its next line.
func TestAQuietStreamEndsWithItsClientAndItsController(t *testing.T) {
	for what, header := range map[string]string{"docker's client": "", "our client": "Drover-Frames: 1\r\n"} {
		t.Run(what, func(t *testing.T) {
			noLeaks(t)
			h := newHost(t)
			h.up()
			began, typed, ended := make(chan bool, 9), make(chan bool, 9), make(chan bool, 9)
			agent := http.NewServeMux()
			agent.HandleFunc("POST /v1/tasks/{id}/attach", func(w http.ResponseWriter, r *http.Request) {
				c, err := bulk.Hijack(w, r)
				if err != nil {
					t.Error(err)
					return
				}
				began <- true
				go func() { _, _ = io.Copy(io.Discard, c); typed <- true }()
				<-c.Context().Done()
				_ = c.Close()
				ended <- true
			})
			a, err := h.open(h.files(identity.AgentPKI(h.data)), 1, h.bulkPort(h.files(identity.AgentPKI(h.data)), agent))
			if err != nil {
				t.Fatal(err)
			}
			a.sync()
			image(h)
			id := h.create("quiet", `{"Image":"busybox","Cmd":["true"]}`)
			a.sync()
			a.status(&dv1.TaskStatus{Id: raw(h, id), Attempt: 1, Phase: dv1.Phase_ACTIVE, Started: 1})
			attach := func() net.Conn {
				c, err := net.Dial("unix", unixsock.File(h.rundir))
				if err != nil {
					t.Fatal(err)
				}
				_, err = io.WriteString(c, "POST /containers/quiet/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: drover\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"+header+"\r\n")
				if err != nil {
					t.Fatal(err)
				}
				if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.Contains(line, "101") {
					t.Fatalf("attach: %q %v", line, err)
				}
				wait(t, began, "the stream begins")
				return c
			}
			if header != "" { // of docker's, an end may be that of its input only
				_ = attach().Close()
				wait(t, ended, "the stream ends with its client")
			}
			for range 2 {
				defer func(c net.Conn) { _ = c.Close() }(attach())
			}
			if u, ok := attach().(*net.UnixConn); ok && header == "" { // types no more, and reads on
				defer func() { _ = u.Close() }()
				if err := u.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				wait(t, typed, "its input ends")
			}
			h.down()
			for range 2 {
				wait(t, ended, "the streams end with the controller")
			}
		})
	}
}

func wait(t *testing.T, c chan bool, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(10 * time.Second):
		t.Fatal("not: " + what)
	}
}

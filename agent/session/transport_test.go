package session

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"
)

// message is an envelope with n bytes of content.
func message(n int) (prefix, content []byte) {
	return binary.BigEndian.AppendUint32([]byte{0}, uint32(n)), bytes.Repeat([]byte{byte(n)}, n)
}

// A prefix and its message are written one by one, and read together; nothing is waited
// for beyond that.
func TestAMessageIsReadWithItsPrefix(t *testing.T) {
	for _, c := range []struct {
		name     string
		messages []int // bytes of content
		buffer   int
		want     []int // bytes of each read
	}{
		{"some", []int{3, 7, 300}, 512, []int{8, 12, 305}},
		{"none has as many bytes as a prefix", []int{5, 5}, 512, []int{10, 10}},
		{"no content", []int{0, 2}, 512, []int{5, 7}},
		{"longer than the buffer", []int{1000, 1}, 512, []int{512, 493, 6}},
		{"its end is as long as a prefix", []int{512, 1}, 512, []int{512, 5, 6}},
		{"a buffer that a prefix just fits", []int{7}, 5, []int{5, 5, 2}},
		{"a buffer that no prefix fits", []int{2, 1}, 4, []int{4, 3, 4, 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, w := io.Pipe()
			defer func() { _ = r.Close() }()
			next := make(chan struct{})
			done := make(chan struct{})
			var sent []byte
			go func() {
				defer close(done)
				for _, n := range c.messages {
					prefix, content := message(n)
					sent = append(append(sent, prefix...), content...)
					_, _ = w.Write(prefix)
					if n > 0 {
						_, _ = w.Write(content)
					}
					<-next // what is read does not depend on the next message
				}
				_ = w.Close()
			}()
			e := &envelopes{ReadCloser: r}
			var got []byte
			var sizes []int
			for i := range c.messages {
				total := 0
				for _, n := range c.messages[:i+1] {
					total += prefixSize + n
				}
				for len(got) < total {
					p := make([]byte, c.buffer)
					n, err := e.Read(p)
					if err != nil {
						t.Fatal(err)
					}
					got, sizes = append(got, p[:n]...), append(sizes, n)
				}
				next <- struct{}{}
			}
			<-done
			if n, err := e.Read(make([]byte, 8)); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("at the end: %d, %v", n, err)
			}
			if !bytes.Equal(got, sent) {
				t.Error("what was read is not what was sent")
			}
			if !slices.Equal(sizes, c.want) {
				t.Errorf("reads of %v bytes, want %v", sizes, c.want)
			}
		})
	}
}

// A body that breaks off after a prefix fails with what was read.
func TestABodyThatBreaksOffWithinAMessageFails(t *testing.T) {
	prefix, _ := message(9)
	gone := errors.New("gone")
	e := &envelopes{ReadCloser: io.NopCloser(io.MultiReader(bytes.NewReader(prefix), iotest.ErrReader(gone)))}
	p := make([]byte, 64)
	if n, err := e.Read(p); n != prefixSize || !errors.Is(err, gone) {
		t.Errorf("%d, %v", n, err)
	}
}

// However a body is cut, all of it is passed on.
func FuzzEnvelopes(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 2, 1, 1, 0, 0, 0, 0, 0}, uint8(3))
	f.Add([]byte{0, 255, 255, 255, 255, 9}, uint8(200))
	f.Fuzz(func(t *testing.T, body []byte, size uint8) {
		e := &envelopes{ReadCloser: io.NopCloser(iotest.HalfReader(bytes.NewReader(body)))}
		var got []byte
		for p := make([]byte, max(1, int(size))); ; {
			n, err := e.Read(p)
			got = append(got, p[:n]...)
			if err != nil {
				break
			}
		}
		if !bytes.Equal(got, body) {
			t.Errorf("%d bytes of %d", len(got), len(body))
		}
	})
}

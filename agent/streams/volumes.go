package streams

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/drover/drover/pkg/bulk"
)

// maxIDs bounds the body of a request for sizes, which lists ids: some 60,000.
const maxIDs = 4 << 20

// Volumes are the node's volumes, by id.
type Volumes interface {
	// Size returns the bytes of a volume's files.
	Size(ctx context.Context, id string) (int64, error)
	// Export writes a volume's files to what begin returns, which is told the room that
	// they take, once nobody uses it.
	Export(ctx context.Context, id string, begin func(room int64) io.Writer) error
	// Import makes a volume of what Export wrote, once all of r was read without an error.
	Import(ctx context.Context, id string, room int64, r io.Reader, progress func(written int64)) error
}

// volumeSizes answers with the sizes of those volumes, in bytes and by id, that can be told.
func (s *server) volumeSizes(w http.ResponseWriter, r *http.Request) {
	var ids []string
	if err := decode(r, &ids); err != nil {
		refuse(w, err)
		return
	}
	out := map[string]int64{}
	for _, id := range ids {
		if s.volumes == nil || r.Context().Err() != nil {
			break
		}
		n, err := s.volumes.Size(r.Context(), id)
		if err != nil {
			s.log.Warn("a volume can't be measured", "err", err)
			continue
		}
		out[id] = n
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out) // it fails only if the caller is gone
}

// exportBuffer is how much of a volume is sent at once.
const exportBuffer = 256 << 10

// volumeFiles sends the files of a volume to the node that it moves to.
func (s *server) volumeFiles(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if s.volumes == nil || s.granted == nil {
		refuse(w, &bulk.StatusError{Code: http.StatusForbidden, Message: "this node has no volumes for other nodes"})
		return
	}
	what, err := s.granted(r)
	if err == nil && what != bulk.GrantOfVolume(id) {
		err = errors.New("the grant is for something else")
	}
	if err != nil {
		refuse(w, &bulk.StatusError{Code: http.StatusForbidden, Message: err.Error()})
		return
	}
	sum := sha256.New()
	var out *bufio.Writer
	err = s.volumes.Export(r.Context(), id, func(room int64) io.Writer {
		w.Header().Set("Content-Type", "application/x-tar")
		w.Header().Set("Trailer", bulk.HeaderSum)
		w.Header().Set(bulk.HeaderRoom, strconv.FormatInt(room, 10))
		w.WriteHeader(http.StatusOK)
		out = bufio.NewWriterSize(io.MultiWriter(w, sum), exportBuffer)
		return out
	})
	if out == nil {
		refuse(w, err)
		return
	}
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		if r.Context().Err() == nil {
			s.log.Warn("sending a volume's files failed", "err", err)
		}
		panic(http.ErrAbortHandler) // the reader must not take what it has for all
	}
	w.Header().Set(bulk.HeaderSum, hex.EncodeToString(sum.Sum(nil)))
}

// fetchEvery is how often a copy's progress is reported, at most.
const fetchEvery = 200 * time.Millisecond

// fetchVolume copies a volume from another node.
func (s *server) fetchVolume(w http.ResponseWriter, r *http.Request) {
	var f bulk.VolumeFetch
	if err := decode(r, &f); err != nil {
		refuse(w, err)
		return
	}
	if s.volumes == nil || s.peer == nil {
		refuse(w, &bulk.StatusError{Code: http.StatusForbidden, Message: "this node has no volumes"})
		return
	}
	rc, enc := http.NewResponseController(w), json.NewEncoder(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	say := func(l bulk.VolumeLine) {
		_ = enc.Encode(l)
		_ = rc.Flush()
	}
	last := time.Now()
	err := s.fetch(r.Context(), r.PathValue("id"), f, func(written, total int64) {
		if now := time.Now(); now.Sub(last) >= fetchEvery {
			last = now
			say(bulk.VolumeLine{Written: written, Total: total})
		}
	})
	if err != nil {
		say(bulk.VolumeLine{Error: err.Error()})
		return
	}
	say(bulk.VolumeLine{Done: true})
}

func (s *server) fetch(ctx context.Context, id string, f bulk.VolumeFetch, progress func(written, total int64)) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/v1/volumes/"+f.ID+"/files", nil)
	if err != nil {
		return fmt.Errorf("asking for a volume's files: %w", err)
	}
	resp, err := s.peer(f.Addr, f.Grant).Do(req)
	if err != nil {
		return fmt.Errorf("asking %s for a volume's files: %w", f.Addr, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
		return fmt.Errorf("%s refuses a volume's files: %s %s", f.Addr, resp.Status, b)
	}
	room, err := strconv.ParseInt(resp.Header.Get(bulk.HeaderRoom), 10, 64)
	if err != nil || room < 0 {
		return fmt.Errorf("%s does not say how large the volume is", f.Addr)
	}
	return s.volumes.Import(ctx, id, room, &summed{resp: resp, sum: sha256.New()}, func(written int64) { progress(written, room) })
}

// maxRefusal bounds what is shown of a refusal.
const maxRefusal = 4 << 10

// summed reads a response, and at its end compares its sum with the one that follows it.
type summed struct {
	resp *http.Response
	sum  hash.Hash
}

var errSum = errors.New("the files that came are not those that were sent: their sums differ")

// Read implements io.Reader.
func (s *summed) Read(p []byte) (int, error) {
	n, err := s.resp.Body.Read(p)
	_, _ = s.sum.Write(p[:n])
	if errors.Is(err, io.EOF) && s.resp.Trailer.Get(bulk.HeaderSum) != hex.EncodeToString(s.sum.Sum(nil)) {
		err = errSum
	}
	return n, err
}

package streams

import (
	"encoding/json"
	"net/http"
)

// maxIDs bounds the body of a request for sizes, which lists ids: some 60,000.
const maxIDs = 4 << 20

// volumeSizes answers with the sizes of those volumes, in bytes and by id, that can be told.
func (s *server) volumeSizes(w http.ResponseWriter, r *http.Request) {
	var ids []string
	if err := decode(r, &ids); err != nil {
		refuse(w, err)
		return
	}
	out := map[string]int64{}
	for _, id := range ids {
		if s.sizeOf == nil || r.Context().Err() != nil {
			break
		}
		n, err := s.sizeOf(r.Context(), id)
		if err != nil {
			s.log.Warn("a volume can't be measured", "err", err)
			continue
		}
		out[id] = n
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out) // it fails only if the caller is gone
}

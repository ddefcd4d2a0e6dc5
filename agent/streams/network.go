package streams

import (
	"net/http"

	"github.com/drover/drover/pkg/bulk"
)

func (s *server) checkNetwork(w http.ResponseWriter, r *http.Request) {
	c, err := s.network.Check(r.Context())
	if err != nil {
		refuse(w, err)
		return
	}
	writeJSON(w, http.StatusOK, c)
}

func (s *server) ways(w http.ResponseWriter, r *http.Request) {
	all, err := s.network.Ways(r.Context())
	if err != nil {
		refuse(w, err)
		return
	}
	if all == nil {
		all = []bulk.Way{}
	}
	writeJSON(w, http.StatusOK, all)
}

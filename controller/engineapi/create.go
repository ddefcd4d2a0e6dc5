package engineapi

import (
	"net/http"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/controller/create"
	"github.com/drover/drover/controller/scheduler"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
)

func (s *server) createContainer(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.state(w, r)
	if err != nil {
		return err
	}
	sent, err := readBody(r, nil)
	if err != nil {
		return err
	}
	asked := create.Request{
		Body: sent, Name: r.URL.Query().Get("name"), Platform: r.URL.Query().Get("platform"),
		On: scheduler.Split(r.Header.Get(wire.HeaderOn)), Contact: s.contact(r),
	}
	if err := asOf(apiVersion(r), &asked); err != nil {
		return err
	}
	c, warnings, err := create.Command(snap, asked)
	if err != nil {
		return err
	}
	res, err := s.propose(w, r, sent, &dv1.Command{Of: &dv1.Command_Create{Create: c}})
	if err != nil {
		return err
	}
	return answer(w, http.StatusCreated, container.CreateResponse{ID: hexID(&dv1.Task{Id: res.TaskId}), Warnings: append(append([]string{}, warnings...), res.Warnings...)})
}

// asOf removes what a version of docker's API did not have yet, and reads what it still
// had.
func asOf(version int, r *create.Request) error {
	if version < 41 {
		r.Platform = ""
	}
	if version >= 52 || len(r.Body) == 0 {
		return nil
	}
	var older struct{ MacAddress string }
	if err := decode(r.Body, &older); err != nil {
		return err
	}
	r.MAC = older.MacAddress
	return nil
}

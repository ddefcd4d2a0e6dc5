package relay

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// Clock asks a controller for its time, to the second.
func (r *Relay) Clock(ctx context.Context, id, addr string) (time.Time, error) {
	resp, err := r.peer(id, addr).do(ctx, laneLog, http.MethodGet, StatusPath, nil)
	if err != nil {
		return time.Time{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	t, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the time of controller %.12s: %w", id, err)
	}
	return t, nil
}

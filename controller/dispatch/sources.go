package dispatch

import dv1 "github.com/drover/drover/pkg/api/v1"

// sources says of each image of some tasks what their node must know to get it: a
// full sync has them all, so that an agent that forgot them has them again.
func (h *Hub) sources(node string, tasks []*dv1.Assignment) (out []*dv1.Source) {
	snap := h.o.Log.Snapshot()
	said := map[string]bool{}
	for _, a := range tasks {
		d := a.GetSpec().GetDigest()
		if d == "" || said[d] {
			continue
		}
		said[d] = true
		s := &dv1.Source{Digest: d, Public: snap.Image(d).GetPublic()}
		if h.o.Grant != nil {
			var err error
			if s.Grant, err = h.o.Grant(node, d); err != nil {
				h.o.Logger.Warn("a node gets no grant for an image", "node", node, "image", d, "err", err)
			}
		}
		out = append(out, s)
	}
	return out
}

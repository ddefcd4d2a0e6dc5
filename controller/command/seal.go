package command

import (
	"strings"

	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Names of what is sealed. The data key is there once for each controller, as
// WrapPrefix + key's id + "/" + controller's id, and once as RecoveryName.
const (
	AuthorityName = "ca-key"
	WrapPrefix    = "data-key/"
	RecoveryName  = "recovery"
)

// WrapName is where a data key is, wrapped for a controller.
func WrapName(key, controller string) string { return WrapPrefix + key + "/" + controller }

// dataKey is the data key's id, "" before there is one.
func (d *decision) dataKey() string { return d.Sealed(AuthorityName).GetDataKey() }

// putSealed takes a value, or without one its name away.
func (d *decision) putSealed(s *dv1.Sealed) *dv1.Error {
	if len(s.GetBlob()) == 0 {
		if d.Sealed(s.GetName()) != nil {
			d.add(&dv1.Effect{Of: &dv1.Effect_DeleteSealed{DeleteSealed: s.Name}})
		}
		return nil
	}
	if now := d.dataKey(); now != "" && s.GetDataKey() != now {
		return refuse(dv1.Error_STALE_KEY, "%s is sealed with data key %q, which is %s by now", s.GetName(), s.GetDataKey(), now)
	}
	if !proto.Equal(d.Sealed(s.GetName()), s) {
		d.add(&dv1.Effect{Of: &dv1.Effect_Sealed{Sealed: s}})
	}
	return nil
}

// rotateDataKey wants everything at once, so that no moment has values that only
// one of two keys opens: all that is sealed, and the new key for every controller.
func (d *decision) rotateDataKey(c *dv1.RotateDataKey) *dv1.Error {
	was := d.dataKey()
	if c.From != was {
		return refuse(dv1.Error_STALE_KEY, "the data key is %s by now, not %s", was, c.From)
	}
	to := ""
	for _, s := range c.Sealed {
		if s.Name == AuthorityName {
			to = s.DataKey
		}
	}
	if to == "" || to == was {
		return refuse(dv1.Error_INVALID, "a new data key has to seal the authority's key")
	}
	missing := map[string]bool{}
	for s := range d.SealedAll() {
		if !strings.HasPrefix(s.Name, WrapPrefix) {
			missing[s.Name] = true
		}
	}
	for m := range d.Controllers() {
		missing[WrapName(to, m.Id)] = true
	}
	if d.Sealed(RecoveryName) != nil && len(d.Sealed(RecoveryName).Recipient) == 0 {
		delete(missing, RecoveryName) // nobody knows for whom to wrap: it goes
		d.add(&dv1.Effect{Of: &dv1.Effect_DeleteSealed{DeleteSealed: RecoveryName}})
	}
	for _, s := range c.Sealed {
		if !missing[s.Name] || s.DataKey != to {
			return refuse(dv1.Error_STALE_KEY, "%s is not among what is sealed, or not with data key %s", s.Name, to)
		}
		delete(missing, s.Name)
		d.add(&dv1.Effect{Of: &dv1.Effect_Sealed{Sealed: s}})
	}
	for name := range missing {
		return refuse(dv1.Error_STALE_KEY, "%s would be left with data key %s", name, was)
	}
	for s := range d.SealedAll() {
		if strings.HasPrefix(s.Name, WrapPrefix) {
			d.add(&dv1.Effect{Of: &dv1.Effect_DeleteSealed{DeleteSealed: s.Name}})
		}
	}
	return nil
}

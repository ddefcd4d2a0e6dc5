package command

import (
	"strings"

	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Names of sealed values. The data key is stored once for each controller, as
// WrapPrefix + key's id + "/" + controller's id, and once as RecoveryName.
const (
	AuthorityName = "ca-key"
	WrapPrefix    = "data-key/"
	RecoveryName  = "recovery"
)

// WrapName returns the name of a data key that is wrapped for a controller.
func WrapName(key, controller string) string { return WrapPrefix + key + "/" + controller }

// dataKey returns the data key's id, "" if there is none yet.
func (d *decision) dataKey() string { return d.Sealed(AuthorityName).GetDataKey() }

// putSealed stores a value, or deletes the name if there is none.
func (d *decision) putSealed(s *dv1.Sealed) *dv1.Error {
	if len(s.GetBlob()) == 0 {
		if d.Sealed(s.GetName()) != nil {
			d.add(&dv1.Effect{Of: &dv1.Effect_DeleteSealed{DeleteSealed: s.Name}})
		}
		return nil
	}
	if now := d.dataKey(); now != "" && s.GetDataKey() != now {
		return refuse(dv1.Error_STALE_KEY, "%s is sealed with data key %q, but the current one is %s", s.GetName(), s.GetDataKey(), now)
	}
	if !proto.Equal(d.Sealed(s.GetName()), s) {
		d.add(&dv1.Effect{Of: &dv1.Effect_Sealed{Sealed: s}})
	}
	return nil
}

// rotateDataKey requires everything at once, all sealed values and the new key
// wrapped for every controller, so that there is never a mix of keys.
func (d *decision) rotateDataKey(c *dv1.RotateDataKey) *dv1.Error {
	was := d.dataKey()
	if c.From != was {
		return refuse(dv1.Error_STALE_KEY, "the current data key is %s, not %s", was, c.From)
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
		delete(missing, RecoveryName) // nobody knows whom to wrap it for: drop it
		d.add(&dv1.Effect{Of: &dv1.Effect_DeleteSealed{DeleteSealed: RecoveryName}})
	}
	for _, s := range c.Sealed {
		if !missing[s.Name] || s.DataKey != to {
			return refuse(dv1.Error_STALE_KEY, "%s is not a sealed value, or not sealed with data key %s", s.Name, to)
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

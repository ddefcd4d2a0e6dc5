package create

import (
	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/pkg/recent"
)

// maxDecoded bounds the bytes of a generation of requests.
const maxDecoded = 8 << 20

// requests are those that were decoded last, by what was sent: many containers are
// often made with few of them.
var requests = recent.Map[string, decoded]{Max: maxDecoded}

type decoded struct {
	body []byte
	req  *container.CreateRequest
}

// remembered is decode. What it returns is shared and must not be modified.
func remembered(sent []byte) ([]byte, *container.CreateRequest, error) {
	if d, ok := requests.Get(string(sent)); ok {
		return d.body, d.req, nil
	}
	body, req, err := decode(sent)
	if err != nil {
		return nil, nil, err
	}
	requests.Put(string(sent), decoded{body, req}, len(sent)+len(body)+recent.Size(req))
	return body, req, nil
}

package task

import (
	"encoding/binary"
	"errors"

	"github.com/drover/drover/pkg/life"
)

// LogPosition is a position in a stream of output, at which the stream can be resumed
// after a break. Only the engine that created it can interpret it.
type LogPosition struct {
	Life   life.Life // whose output it is
	Offset uint64    // of the next record of the log
	At     uint32    // bytes of that record that are before the position
	Lines  byte      // state of the lines before it
}

// The restarts of a life come last, and only where there are any: agents that did not
// count them encoded nothing else.
const (
	positionLen = 17
	anewLen     = positionLen + 4
)

// Encode returns p as a bulk.FramePos carries it.
func (p LogPosition) Encode() []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, anewLen), uint32(p.Life.Attempt))
	b = binary.BigEndian.AppendUint64(b, p.Offset)
	b = append(binary.BigEndian.AppendUint32(b, p.At), p.Lines)
	if p.Life.Restarts == 0 {
		return b
	}
	return binary.BigEndian.AppendUint32(b, uint32(p.Life.Restarts))
}

// DecodeLogPosition decodes what Encode returned.
func DecodeLogPosition(b []byte) (p LogPosition, err error) {
	if len(b) != positionLen && len(b) != anewLen {
		return p, errors.New("not a position in a stream of output")
	}
	p.Life.Attempt = int32(binary.BigEndian.Uint32(b))
	p.Offset, p.At, p.Lines = binary.BigEndian.Uint64(b[4:]), binary.BigEndian.Uint32(b[12:]), b[16]
	if len(b) == anewLen {
		p.Life.Restarts = int32(binary.BigEndian.Uint32(b[positionLen:]))
	}
	if p.Life.Attempt < 0 || p.Life.Restarts < 0 {
		return LogPosition{}, errors.New("not a position in a stream of output")
	}
	return p, nil
}

package task

import (
	"encoding/binary"
	"errors"
)

// LogPosition is a position in a stream of output, at which the stream can be resumed
// after a break. Only the engine that created it can interpret it.
type LogPosition struct {
	Attempt int32  // whose output it is
	Offset  uint64 // of the next record of the log
	At      uint32 // bytes of that record that are before the position
	Lines   byte   // state of the lines before it
}

const positionLen = 17

// Encode returns p as a bulk.FramePos carries it.
func (p LogPosition) Encode() []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, positionLen), uint32(p.Attempt))
	b = binary.BigEndian.AppendUint64(b, p.Offset)
	return append(binary.BigEndian.AppendUint32(b, p.At), p.Lines)
}

// DecodeLogPosition decodes what Encode returned.
func DecodeLogPosition(b []byte) (p LogPosition, err error) {
	if len(b) != positionLen {
		return p, errors.New("not a position in a stream of output")
	}
	p.Attempt = int32(binary.BigEndian.Uint32(b))
	if p.Attempt < 0 {
		return p, errors.New("not a position in a stream of output")
	}
	p.Offset, p.At, p.Lines = binary.BigEndian.Uint64(b[4:]), binary.BigEndian.Uint32(b[12:]), b[16]
	return p, nil
}

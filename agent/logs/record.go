// Package logs is a container's output on disk: records in segment files, which
// one shim writes and any number of readers follow, also after both it and the
// agent were killed. What lines look like to a user is decided when reading.
//
// A log is a folder of segments, each named by the offset of its first byte in
// the whole log, %020d.log. A record is a header of 24 bytes and its payload,
// as it was read from the container: not cut into lines. Format 1:
//
//	0  format, 1      4  payload length, uint32    16 CRC-32C of bytes 0-15 and payload
//	1  stream, 1 or 2 8  Unix nanoseconds, int64   20 zero
//	2  zero, zero
//
// All numbers are big-endian. A record that is torn or whose checksum is wrong ends the
// log: a power cut leaves such a tail, and the next writer truncates it.
package logs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"
)

// Streams of a record.
const (
	Stdout byte = 1
	Stderr byte = 2
)

const (
	format     = 1
	headerSize = 24
	// MaxPayload bounds a record.
	MaxPayload = 64 << 10
)

// Record is a piece of output. Offset and Next are positions in the whole log.
type Record struct {
	Offset, Next uint64
	Time         time.Time
	Stream       byte
	Data         []byte
}

var (
	errShort = errors.New("the record is cut off")
	castTab  = crc32.MakeTable(crc32.Castagnoli)
)

// appendRecord encodes a record.
func appendRecord(b []byte, stream byte, at time.Time, data []byte) []byte {
	n := len(b)
	b = append(b, format, stream, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	b = binary.BigEndian.AppendUint64(b, uint64(at.UnixNano()))
	sum := crc32.Update(crc32.Checksum(b[n:], castTab), castTab, data)
	b = binary.BigEndian.AppendUint32(b, sum)
	b = append(b, 0, 0, 0, 0)
	return append(b, data...)
}

// decode decodes the record at the start of b, whose position in the log is at. errShort
// means that b ends within the record.
func decode(b []byte, at uint64) (Record, error) {
	if len(b) < headerSize {
		return Record{}, errShort
	}
	n := binary.BigEndian.Uint32(b[4:])
	if b[0] != format || n > MaxPayload || (b[1] != Stdout && b[1] != Stderr) {
		return Record{}, fmt.Errorf("no record of format %d at offset %d", format, at)
	}
	if len(b) < headerSize+int(n) {
		return Record{}, errShort
	}
	data := b[headerSize : headerSize+int(n)]
	if crc32.Update(crc32.Checksum(b[:16], castTab), castTab, data) != binary.BigEndian.Uint32(b[16:]) {
		return Record{}, fmt.Errorf("the record at offset %d is damaged", at)
	}
	return Record{
		Offset: at, Next: at + headerSize + uint64(n), Stream: b[1], Data: data,
		Time: time.Unix(0, int64(binary.BigEndian.Uint64(b[8:]))),
	}, nil
}

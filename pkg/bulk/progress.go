package bulk

import "encoding/hex"

// Progress tracks how much of a stream of output was received: where to resume after a
// break, and what to skip in the resumed stream. The zero value is the beginning of a
// stream.
type Progress struct {
	pos  []byte
	past [FrameStderr + 1]int64 // bytes received since pos, by kind
	skip [FrameStderr + 1]int64 // bytes to skip, received before the break
}

// At starts from a requested position.
func (p *Progress) At(from string) {
	p.pos, _ = hex.DecodeString(from)
}

// Take records a frame of output or a FramePos, and returns the part of it that is new.
// A position within what was already received is not new.
func (p *Progress) Take(kind byte, b []byte) (rest []byte, fresh bool) {
	switch kind {
	case FramePos:
		p.pos, p.past = append(p.pos[:0:0], b...), p.skip
		return b, p.skip == [len(p.skip)]int64{}
	case FrameStdout, FrameStderr:
		k := min(p.skip[kind], int64(len(b)))
		p.skip[kind] -= k
		b = b[k:]
		p.past[kind] += int64(len(b))
		return b, len(b) > 0
	}
	return b, true
}

// Again returns the position to resume at after a break, "" if there was none yet.
func (p *Progress) Again() (from string) {
	p.skip = p.past
	return hex.EncodeToString(p.pos)
}

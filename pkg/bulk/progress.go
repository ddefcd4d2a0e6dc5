package bulk

import "encoding/hex"

// Progress is how far a stream of output was taken: what to ask for after a break,
// and what to leave out of the answer. The zero value is a stream's beginning.
type Progress struct {
	pos  []byte
	past [FrameStderr + 1]int64 // bytes taken since pos, by kind
	skip [FrameStderr + 1]int64 // of what comes, taken already
}

// At begins at a position that was asked for.
func (p *Progress) At(from string) {
	p.pos, _ = hex.DecodeString(from)
}

// Take notes a frame of output or a FramePos, and gives what of it is new. A
// position within what was taken already is not.
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

// Again is what to ask for after a break, "" if there was no position yet.
func (p *Progress) Again() (from string) {
	p.skip = p.past
	return hex.EncodeToString(p.pos)
}

package peers

import (
	"errors"
	"fmt"
	"time"
)

// Contender is a side that is to be measured.
type Contender struct {
	Name string
	Goal float64
	// Do is what is measured: the time that it takes, or the quantity that it returns.
	Do func(round int) (quantity float64, err error)
	// Undo removes what Do made, unmeasured; nil if there is nothing.
	Undo func(round int) error
	// CPU returns the CPU time so far of all processes of the side; nil: not accounted for.
	CPU func() time.Duration
}

// Timed makes a Do of what is to be timed.
func Timed(do func(round int) error) func(int) (float64, error) {
	return func(round int) (float64, error) {
		begin := time.Now()
		err := do(round)
		return Milliseconds(time.Since(begin)), err
	}
}

// Measure runs the contenders by turns, so that noise on the machine affects all of them,
// and returns the row with their samples. Rounds of warm-up come first, and do not count. A
// contender that fails is out of the row: the error says why, and the samples that it and
// the others have are still worth showing.
func Measure(row Row, warmUp, rounds int, all []Contender) (Row, error) {
	row.Sides = make([]Side, len(all))
	for i, c := range all {
		row.Sides[i] = Side{Name: c.Name, Goal: c.Goal}
	}
	failed := make([]error, len(all))
	for n := range warmUp + rounds {
		for k := range all {
			i := (k + n) % len(all) // nobody always follows the same one
			if failed[i] != nil {
				continue
			}
			s, err := all[i].measure(n)
			if err != nil {
				failed[i] = fmt.Errorf("%s: %s, round %d: %w", row.Name, all[i].Name, n, err)
			} else if n >= warmUp {
				row.Sides[i].Samples = append(row.Sides[i].Samples, s)
			}
		}
	}
	return row, errors.Join(failed...)
}

func (c Contender) measure(round int) (s Sample, err error) {
	var before time.Duration
	if c.CPU != nil {
		before = c.CPU()
	}
	s.Value, err = c.Do(round)
	if c.CPU != nil {
		s.CPU = Milliseconds(c.CPU() - before)
	}
	if c.Undo != nil {
		if e := c.Undo(round); e != nil && err == nil {
			err = fmt.Errorf("removing what it made: %w", e)
		}
	}
	return s, err
}

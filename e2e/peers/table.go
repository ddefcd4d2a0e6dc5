package peers

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Sample is what one round of a side took.
type Sample struct {
	Value float64 // in the row's unit: ms, s or MB, or Gbit/s and other rates
	CPU   float64 // in ms, of all processes of the side; 0 if it is not accounted for
}

// Row is one comparison. The first side is drover's, which the others are compared with.
type Row struct {
	Name  string
	Unit  string
	More  bool    // more of Unit is better, not less: goals are at least, and p90 is what nine of ten rounds reached
	Count int     // how many things a round does: shown as a rate, 0 for none
	Goal  float64 // of the first side: at most so much of Unit or, with Count, at least so many a second; 0 for none
	Sides []Side
}

// Side is one contender in a row.
type Side struct {
	Name    string
	Goal    float64 // at most how much drover may take of what this side takes, or at least with More; 0 for none
	Samples []Sample
}

// quantile returns the q-th quantile of what of returns, by nearest rank; NaN has no place
// in it, and no samples are 0.
func (s Side) quantile(q float64, of func(Sample) float64) float64 {
	if len(s.Samples) == 0 {
		return 0
	}
	v := make([]float64, len(s.Samples))
	for i, x := range s.Samples {
		v[i] = of(x)
	}
	slices.Sort(v)
	return v[min(len(v)-1, int(q*float64(len(v))))]
}

func value(x Sample) float64 { return x.Value }
func less(x Sample) float64  { return -x.Value }
func cpu(x Sample) float64   { return x.CPU }

const line = "%-44s %5s %12s %12s %9s %9s %7s %7s  %s\n"

// Heading writes the heading of a table.
func Heading(w io.Writer) {
	_, _ = fmt.Fprintf(w, line, "", "n", "median", "p90", "CPU ms", "p90", "ratio", "of CPU", "goal")
}

// Write writes the row below a heading: a line for each side, with how much of it drover
// takes, and whether the goals are met.
func (r Row) Write(w io.Writer) {
	_, _ = fmt.Fprintln(w, r.Name)
	for i, s := range r.Sides {
		med := s.quantile(0.5, value)
		cells := []any{"  " + s.Name, fmt.Sprint(len(s.Samples)), r.show(med), r.show(r.p90(s)), "", "", "", "", ""}
		if c := s.quantile(0.5, cpu); c > 0 {
			cells[4], cells[5] = fmt.Sprintf("%.1f", c), fmt.Sprintf("%.1f", s.quantile(0.9, cpu))
		}
		if i > 0 {
			ours := r.Sides[0]
			cells[6] = ratio(ours.quantile(0.5, value), med)
			cells[7] = ratio(ours.quantile(0.5, cpu), s.quantile(0.5, cpu))
			if s.Goal > 0 && med > 0 {
				cells[8] = met(fmt.Sprintf("%.2fx", s.Goal), r.reached(ours.quantile(0.5, value)/med, s.Goal))
			}
		} else if r.Goal > 0 && med > 0 {
			if r.Count > 0 {
				cells[8] = met(fmt.Sprintf("%.0f/s", r.Goal), r.rate(med) >= r.Goal)
			} else {
				cells[8] = met(fmt.Sprintf("%g %s", r.Goal, r.Unit), r.reached(med, r.Goal))
			}
		}
		if r.Count > 0 && med > 0 {
			cells[8] = strings.TrimSuffix(fmt.Sprintf("%.1f/s, %s", r.rate(med), cells[8]), ", ")
		}
		text := fmt.Sprintf(line, cells...)
		_, _ = io.WriteString(w, strings.TrimRight(text, " \n")+"\n")
	}
}

// p90 returns what nine of ten rounds were at least as good as.
func (r Row) p90(s Side) float64 {
	if r.More && len(s.Samples) > 0 {
		return -s.quantile(0.9, less)
	}
	return s.quantile(0.9, value)
}

func (r Row) reached(got, goal float64) bool {
	if r.More {
		return got >= goal
	}
	return got <= goal
}

func (r Row) show(v float64) string { return fmt.Sprintf("%.1f %s", v, r.Unit) }

func (r Row) rate(v float64) float64 {
	if r.Unit == "ms" {
		v /= 1000
	}
	return float64(r.Count) / v
}

func ratio(ours, theirs float64) string {
	if ours == 0 || theirs == 0 {
		return ""
	}
	return fmt.Sprintf("%.2fx", ours/theirs)
}

func met(goal string, yes bool) string {
	if yes {
		return goal + " met"
	}
	return goal + " missed"
}

// Milliseconds returns d as a number of milliseconds.
func Milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

package peers

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files")

func samples(cpu float64, values ...float64) (all []Sample) {
	for i, v := range values {
		s := Sample{Value: v}
		if cpu > 0 {
			s.CPU = cpu + float64(i)
		}
		all = append(all, s)
	}
	return all
}

// The table as people read it: goals of both kinds, met and missed, rates, quantities
// without CPU time, and a row of which nobody was measured.
func TestATable(t *testing.T) {
	var out bytes.Buffer
	Heading(&out)
	for _, r := range []Row{
		{Name: "run --rm busybox true", Unit: "ms", Sides: []Side{
			{Name: "drover", Samples: samples(20, 50, 40, 30, 60, 45)},
			{Name: "ctr", Goal: 0.6, Samples: samples(30, 70, 71, 72, 73, 74)},
			{Name: "docker", Goal: 0.25, Samples: samples(90, 300, 310, 320, 330, 340)},
		}},
		{Name: "run -d, until running", Unit: "ms", Goal: 45, Sides: []Side{{Name: "drover", Samples: samples(1, 45, 45, 45)}}},
		{Name: "100 starts at once", Unit: "ms", Count: 100, Goal: 45, Sides: []Side{
			{Name: "drover", Samples: samples(3000, 2500)}, {Name: "docker", Samples: samples(9000, 16000)},
		}},
		{Name: "60 starts", Unit: "s", Count: 60, Sides: []Side{{Name: "drover", Samples: samples(0, 2)}}},
		{Name: "memory of a container", Unit: "MB", Goal: 2, Sides: []Side{
			{Name: "drover", Samples: samples(0, 2.5)}, {Name: "docker", Samples: samples(0, 2.6)},
		}},
		{Name: "network", Unit: "Gbit/s", More: true, Goal: 9, Sides: []Side{
			{Name: "drover", Samples: samples(0, 9, 9.5, 10, 9.25, 4)}, {Name: "docker", Goal: 0.9, Samples: samples(0, 10, 10, 10)}, {Name: "Swarm", Goal: 1, Samples: samples(0, 10)},
		}},
		{Name: "network", Unit: "/s", More: true, Goal: 10, Sides: []Side{{Name: "drover", Samples: samples(0, 9)}, {Name: "docker"}}},
		{Name: "nobody", Unit: "ms", Goal: 1, Sides: []Side{{Name: "drover"}, {Name: "docker", Goal: 1}}},
	} {
		r.Write(&out)
	}
	const golden = "testdata/table.txt"
	if *update {
		if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || out.String() != string(want) {
		t.Errorf("the table is\n%s, not\n%s (%v)", &out, want, err)
	}
}

func TestQuantiles(t *testing.T) {
	for _, c := range []struct {
		values   []float64
		med, p90 float64
	}{
		{nil, 0, 0},
		{[]float64{7}, 7, 7},
		{[]float64{3, 1, 2}, 2, 3},
		{[]float64{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, 6, 10},
	} {
		s := Side{Samples: samples(0, c.values...)}
		if med, p90 := s.quantile(0.5, value), s.quantile(0.9, value); med != c.med || p90 != c.p90 {
			t.Errorf("%v: median %v and p90 %v, not %v and %v", c.values, med, p90, c.med, c.p90)
		}
	}
}

// Contenders take turns, warm up unmeasured, and are cleaned up after also when they fail.
func TestContendersTakeTurns(t *testing.T) {
	var log []string
	var spent time.Duration
	contender := func(name string, fails int) Contender {
		return Contender{
			Name: name, CPU: func() time.Duration { return spent },
			Do: func(round int) (float64, error) {
				log = append(log, name)
				spent += time.Duration(round+1) * time.Millisecond
				if round == fails {
					return 0, os.ErrDeadlineExceeded
				}
				return float64(round), nil
			},
			Undo: func(int) error {
				log = append(log, "-"+name)
				spent += time.Hour // not the contender's
				return nil
			},
		}
	}
	row, err := Measure(Row{Name: "row"}, 1, 2, []Contender{contender("a", -1), contender("b", -1)})
	if got, want := strings.Join(log, " "), "a -a b -b b -b a -a a -a b -b"; err != nil || got != want {
		t.Errorf("the order is %s, not %s (%v)", got, want, err)
	}
	for _, s := range row.Sides {
		if len(s.Samples) != 2 || s.Samples[0] != (Sample{1, 2}) || s.Samples[1] != (Sample{2, 3}) {
			t.Errorf("%s: %v", s.Name, s.Samples)
		}
	}
	log = nil
	row, err = Measure(Row{Name: "row"}, 0, 3, []Contender{contender("a", -1), contender("b", 1)})
	if got, want := strings.Join(log, " "), "a -a b -b b -b a -a a -a"; err == nil || !strings.Contains(err.Error(), "row: b, round 1") || got != want {
		t.Errorf("a failure: %v after %s, not %s", err, got, want)
	}
	if a, b := len(row.Sides[0].Samples), len(row.Sides[1].Samples); a != 3 || b != 1 {
		t.Errorf("a failure leaves %d samples of the others and %d of its own", a, b)
	}
}

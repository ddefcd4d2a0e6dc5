package ps

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
)

// ticks is the unit of times in /proc, per second: the same on all platforms that Linux
// runs containers on.
const ticks = 100

// titles are the columns of ps -ef.
var titles = []string{"UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"}

// read lists pids as ps -ef does.
func (h Host) read(pids []int) (container.TopResponse, error) {
	proc := h.Proc
	if proc == "" {
		proc = "/proc"
	}
	booted, err := bootTime(proc)
	if err != nil {
		return container.TopResponse{}, fmt.Errorf("ps: %w", err)
	}
	list, names, now := container.TopResponse{Titles: titles, Processes: [][]string{}}, map[uint32]string{}, time.Now()
	for _, pid := range pids {
		p, err := readProcess(proc, pid)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended meanwhile
		}
		if err != nil {
			return container.TopResponse{}, fmt.Errorf("ps: %w", err)
		}
		if _, known := names[p.uid]; !known {
			names[p.uid] = userName(p.uid)
		}
		list.Processes = append(list.Processes, p.row(names[p.uid], booted, now))
	}
	return list, nil
}

// process is what /proc has of one.
type process struct {
	pid, ppid   int
	uid         uint32
	tty         uint64        // device number, 0: none
	cpu         time.Duration // that it has used
	sinceBoot   time.Duration // when it began
	commandLine string
}

func readProcess(proc string, pid int) (process, error) {
	dir := filepath.Join(proc, strconv.Itoa(pid))
	p := process{pid: pid}
	of, err := os.Stat(dir)
	if err != nil {
		return p, err
	}
	p.uid = of.Sys().(*syscall.Stat_t).Uid
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return p, err
	}
	name, err := p.parseStat(string(stat))
	if err != nil {
		return p, err
	}
	line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return p, err
	}
	if p.commandLine = strings.ReplaceAll(strings.TrimRight(string(line), "\x00"), "\x00", " "); p.commandLine == "" {
		p.commandLine = "[" + name + "]"
	}
	return p, nil
}

// parseStat reads /proc/PID/stat, of proc(5), and returns the program's name, which may
// contain spaces and parentheses.
func (p *process) parseStat(stat string) (name string, err error) {
	from, to := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if from < 0 || to < from {
		return "", fmt.Errorf("process %d: unexpected stat %q", p.pid, stat)
	}
	fields := strings.Fields(stat[to+1:]) // the first is number 3, the state
	if len(fields) < 20 {
		return "", fmt.Errorf("process %d: unexpected stat %q", p.pid, stat)
	}
	var n [20]uint64
	for _, i := range []int{1, 4, 11, 12, 19} {
		if n[i], err = strconv.ParseUint(fields[i], 10, 64); err != nil {
			return "", fmt.Errorf("process %d: unexpected stat %q", p.pid, stat)
		}
	}
	p.ppid, p.tty = int(n[1]), n[4]
	p.cpu, p.sinceBoot = duration(n[11]+n[12]), duration(n[19])
	return stat[from+1 : to], nil
}

func duration(n uint64) time.Duration { return time.Duration(n) * time.Second / ticks }

func (p process) row(user string, booted, now time.Time) []string {
	began := booted.Add(p.sinceBoot)
	share := 0 // of one CPU since it began, in percent
	if age := now.Sub(began); age > 0 {
		share = int(100 * p.cpu / age)
	}
	used := int(p.cpu / time.Second)
	return []string{user, strconv.Itoa(p.pid), strconv.Itoa(p.ppid), strconv.Itoa(share), startTime(began, now), terminal(p.tty),
		fmt.Sprintf("%02d:%02d:%02d", used/3600, used/60%60, used%60), p.commandLine}
}

// startTime is a time of day, for what began earlier a date or a year.
func startTime(began, now time.Time) string {
	switch {
	case began.Year() != now.Year():
		return strconv.Itoa(began.Year())
	case began.YearDay() != now.YearDay():
		return began.Format("Jan02")
	}
	return began.Format("15:04")
}

// terminal names a device: pseudo-terminals are the majors 136 to 143, consoles the
// minors of 4 up to 63 (the kernel's devices.txt).
func terminal(dev uint64) string {
	major, minor := dev>>8&0xfff, dev&0xff|dev>>12&0xfff00
	switch {
	case major >= 136 && major <= 143:
		return fmt.Sprintf("pts/%d", (major-136)<<8+minor)
	case major == 4 && minor < 64:
		return fmt.Sprintf("tty%d", minor)
	}
	return "?"
}

// userName returns an account's name, or its number where ps would print that: without
// an account, and where the name is wider than the column.
func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil && len(u.Username) <= 8 {
		return u.Username
	}
	return id
}

func bootTime(proc string) (time.Time, error) {
	stat, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		return time.Time{}, err
	}
	for line := range strings.Lines(string(stat)) {
		if text, is := strings.CutPrefix(line, "btime "); is {
			n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			return time.Unix(n, 0), err
		}
	}
	return time.Time{}, errors.New("the time of the boot is not in /proc/stat")
}

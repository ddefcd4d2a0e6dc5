package consensus

import (
	"context"
	"io"
	"log"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// logAdapter forwards raft's messages to slog.
type logAdapter struct {
	l    *slog.Logger
	name string
	args []any
}

func (a *logAdapter) Log(level hclog.Level, msg string, args ...any) {
	l := slog.LevelDebug
	switch level {
	case hclog.Info:
		l = slog.LevelInfo
	case hclog.Warn:
		l = slog.LevelWarn
	case hclog.Error:
		l = slog.LevelError
	}
	a.l.Log(context.Background(), l, msg, args...) //nolint:forbidigo // raft's logger has no context
}

func (a *logAdapter) Trace(string, ...any)        {}
func (a *logAdapter) Debug(m string, args ...any) { a.Log(hclog.Debug, m, args...) }
func (a *logAdapter) Info(m string, args ...any)  { a.Log(hclog.Info, m, args...) }
func (a *logAdapter) Warn(m string, args ...any)  { a.Log(hclog.Warn, m, args...) }
func (a *logAdapter) Error(m string, args ...any) { a.Log(hclog.Error, m, args...) }
func (a *logAdapter) IsTrace() bool               { return false }
func (a *logAdapter) IsDebug() bool {
	return a.l.Enabled(context.Background(), slog.LevelDebug) //nolint:forbidigo // as above
}
func (a *logAdapter) IsInfo() bool                     { return true }
func (a *logAdapter) IsWarn() bool                     { return true }
func (a *logAdapter) IsError() bool                    { return true }
func (a *logAdapter) ImpliedArgs() []any               { return a.args }
func (a *logAdapter) Name() string                     { return a.name }
func (a *logAdapter) SetLevel(hclog.Level)             {}
func (a *logAdapter) GetLevel() hclog.Level            { return hclog.Debug }
func (a *logAdapter) ResetNamed(n string) hclog.Logger { return a.Named(n) }

func (a *logAdapter) With(args ...any) hclog.Logger {
	return &logAdapter{l: a.l.With(args...), name: a.name, args: append(a.args[:len(a.args):len(a.args)], args...)}
}

func (a *logAdapter) Named(n string) hclog.Logger {
	return &logAdapter{l: a.l, name: n, args: a.args}
}

func (a *logAdapter) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return log.New(io.Discard, "", 0)
}

func (a *logAdapter) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return io.Discard }

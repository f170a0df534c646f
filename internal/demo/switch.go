package demo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// theSwitch is the folder in which switch.sh keeps the switch's state.
type theSwitch struct {
	dir  string
	into *arrivals
	say  func(arrival)

	cancel context.CancelFunc
	done   chan error
}

func startSwitch(ctx context.Context, dir string, into *arrivals, say func(arrival)) (*theSwitch, error) {
	if err := os.MkdirAll(filepath.Join(dir, "blocked"), 0o755); err != nil {
		return nil, fmt.Errorf("make the switch's folder: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "switch.sh"), []byte(switchScript), 0o755); err != nil {
		return nil, fmt.Errorf("write the switch's script: %w", err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, fmt.Errorf("make the switch's log: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &theSwitch{dir: dir, into: into, say: say, cancel: cancel, done: make(chan error, 1)}
	go func() {
		defer log.Close()
		s.done <- s.follow(ctx, log)
	}()
	return s, nil
}

func (s *theSwitch) script() string { return filepath.Join(s.dir, "switch.sh") }

// close stops following the log, after having read what is in it.
func (s *theSwitch) close() error {
	s.cancel()
	return <-s.done
}

// follow reads the log's lines as they come.
func (s *theSwitch) follow(ctx context.Context, log io.Reader) error {
	r := bufio.NewReader(log)
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	var line []byte
	for last := false; ; {
		part, err := r.ReadBytes('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			s.read(line[:len(line)-1])
			line = nil
			continue
		case !errors.Is(err, io.EOF):
			return fmt.Errorf("read the switch's log: %w", err)
		}
		if last {
			if len(line) > 0 {
				s.into.problem(fmt.Sprintf("the switch's log ends in the middle of a line: %q", line))
			}
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			last = true // what was written until now is read
		}
	}
}

func (s *theSwitch) read(line []byte) {
	fields := bytes.SplitN(line, []byte(" "), 4)
	if len(fields) != 4 {
		s.into.problem(fmt.Sprintf("a line of the switch's log: %q", line))
		return
	}
	a, err := readArrival(fields[3], "")
	nanos, err1 := strconv.ParseInt(string(fields[0]), 10, 64)
	handler, err2 := strconv.Atoi(string(fields[1]))
	attempt, err3 := strconv.Atoi(string(fields[2]))
	if err := errors.Join(err, err1, err2, err3); err != nil {
		s.into.problem(fmt.Sprintf("a line of the switch's log: %v", err))
		return
	}
	a.at, a.handler, a.attempt, a.accepted = time.Unix(0, nanos), handler, attempt, true
	s.into.add(a)
	s.say(a)
}

// blocked returns the clients that the switch does not let in.
func (s *theSwitch) blocked() (map[string]bool, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "blocked"))
	if err != nil {
		return nil, fmt.Errorf("read the switch's state: %w", err)
	}
	blocked := make(map[string]bool, len(entries))
	for _, e := range entries {
		blocked[e.Name()] = true
	}
	return blocked, nil
}

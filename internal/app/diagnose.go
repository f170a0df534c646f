package app

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/billhook/billhook/internal/doctor"
	"github.com/billhook/billhook/internal/web"
)

// How soon after the start, and how often, a running Billhook looks at what it stands on.
const (
	diagnoseFirst = 30 * time.Second
	diagnoseEvery = time.Hour
)

// diagnoses are what the doctor found while Billhook runs.
type diagnoses struct {
	running sync.Mutex
	last    atomic.Pointer[web.Diagnosis]
}

// diagnose looks at the database and this machine as billhook check does, at what has
// changed since Billhook was attached: a setting, a privilege, a table, the disk.
func (a *App) diagnose(ctx context.Context) (web.Diagnosis, error) {
	a.diagnoses.running.Lock()
	defer a.diagnoses.running.Unlock()
	c := a.loaded.Config
	o := doctorOptions(c, a.loaded.Mapping)
	o.Columns = append(checkedColumns(c, a.loaded.Mapping), doctorColumns(a.writes.needs(a.inForce.Load()))...)
	o.Attached = true
	found := doctor.Run(ctx, o)
	if err := ctx.Err(); err != nil {
		return web.Diagnosis{}, fmt.Errorf("look at the database: %w", err)
	}
	d := web.Diagnosis{At: time.Now().UTC(), Findings: []web.Finding{}}
	counts := map[string]int{string(doctor.OK): 0, string(doctor.Warn): 0, string(doctor.Fail): 0, string(doctor.Skip): 0}
	before := map[string]bool{}
	if old := a.diagnoses.last.Load(); old != nil {
		for _, f := range old.Findings {
			before[f.Check+f.Text] = true
		}
	}
	for _, f := range found {
		counts[string(f.Level)]++
		d.Findings = append(d.Findings, web.Finding{Check: f.Check, Level: string(f.Level), Text: f.Text, Remedy: f.Remedy})
		if (f.Level == doctor.Fail || f.Level == doctor.Warn) && !before[f.Check+f.Text] {
			a.log.Warn("check", "level", string(f.Level), "check", f.Check, "found", f.Text, "remedy", f.Remedy)
		}
	}
	a.metrics.diagnosed(counts)
	a.diagnoses.last.Store(&d)
	return d, nil
}

// diagnoseNow and then until ctx ends.
func (a *App) diagnoseNow(ctx context.Context) error {
	wait := time.NewTimer(diagnoseFirst)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-wait.C:
		}
		_, _ = a.diagnose(ctx) // it fails only when all ends
		wait.Reset(diagnoseEvery)
	}
}

//go:build unix

package script_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/billhook/billhook/internal/event"
	"github.com/billhook/billhook/internal/handler"
	"github.com/billhook/billhook/internal/handler/handlertest"
	"github.com/billhook/billhook/internal/handler/script"
	"github.com/billhook/billhook/internal/servertest"
)

// sample copies one of the scripts that are shown to users.
func sample(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../../testdata/scripts", name))
	if err != nil {
		t.Fatal(err)
	}
	return write(t, name, string(text))
}

func TestSampleBlockClient(t *testing.T) {
	dir := t.TempDir()
	h := newHandler(t, script.Options{Path: sample(t, "block-client.sh"), Env: []script.Var{{Name: "SWITCH_DIR", Value: dir}}})
	d := handlertest.Delivery(payload)
	blocked := func() bool { _, err := os.Stat(filepath.Join(dir, "4711")); return err == nil }
	for _, tc := range []struct {
		event   event.Type
		object  string
		blocked bool
		want    string // in the error; "" is success
	}{
		{"clients.balance_zero", "4711", true, ""},
		{"clients.balance_zero", "4711", true, ""},
		{"clients.balance_notzero", "4711", false, ""},
		{"clients.balance_notzero", "4711", false, ""},
		{"clients.archive", "4711", true, ""},
		{"clients.update", "4711", true, "nothing to do for clients.update"},
		{"clients.balance_zero", "../4711", true, "is not a number"},
	} {
		d.Event.Type, d.Event.Object = tc.event, tc.object
		_, err := h.Handle(context.Background(), d)
		if tc.want == "" && err != nil || tc.want != "" && (!handler.IsPermanent(err) || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s of %s: %v, want %q", tc.event, tc.object, err, tc.want)
		}
		if blocked() != tc.blocked {
			t.Errorf("after %s of %s: blocked %t", tc.event, tc.object, blocked())
		}
	}
}

func TestSampleSpareVIP(t *testing.T) {
	if _, err := os.Stat("/usr/bin/python3"); err != nil {
		servertest.Missing(t, "/usr/bin/python3", "python3")
	}
	h := newHandler(t, script.Options{Path: sample(t, "spare-vip.py")})
	for _, tc := range []struct {
		data, reason string
		code         int
	}{
		{`{"id":4711,"group":"vip","balance":"-0.500000"}`, "client 4711 is a VIP at -0.500000", 0},
		{`{"id":4711,"group":"retail","balance":"-0.500000"}`, "", 0},
		{`{"id":4711}`, "", 78},
		{`{`, "", 1},
	} {
		d := handlertest.Delivery([]byte(`{"data":` + tc.data + `}`))
		res, err := h.Handle(context.Background(), d)
		if res.Answer.Stop != (tc.reason != "") || res.Answer.Reason != tc.reason || res.Code != tc.code {
			t.Errorf("%s: answer %+v, code %d, %v", tc.data, res.Answer, res.Code, err)
		}
	}
}

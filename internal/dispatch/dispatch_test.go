package dispatch

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, handlerFor(1, nil), handlerFor(2, failing(2)), handlerFor(3, nil))
		r.start()
		r.commit("clients.create", "a", "b")
		r.commit("clients.update", "a")
		sleep(time.Minute)
		want(t, "calls", r.calls.lines())
		want(t, "table", r.table())
		r.stop()
	})
}

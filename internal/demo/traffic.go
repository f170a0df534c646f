package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

// traffic plays the billing application: several sessions that do what its
// users, its rating engine and its packages manager do.
type traffic struct {
	dsn      string
	sessions int
	limit    *rate.Limiter // transactions per second, all sessions together
	seed     uint64
	say      func(text string) // called from all sessions

	committed, rolledBack atomic.Int64
}

// run drives transactions until ctx ends, and returns when all of them are over:
// a transaction that has begun is finished.
func (t *traffic) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for n := range t.sessions {
		group.Go(func() error {
			err := t.session(ctx, rand.New(rand.NewPCG(t.seed, uint64(n))))
			if err != nil {
				return fmt.Errorf("billing session %d: %w", n, err)
			}
			return nil
		})
	}
	return group.Wait()
}

func (t *traffic) session(ctx context.Context, rng *rand.Rand) error {
	work := context.WithoutCancel(ctx)
	conn, err := pgx.Connect(work, t.dsn)
	if err != nil {
		return err
	}
	defer conn.Close(work)
	total := 0
	for _, a := range actions() {
		total += a.weight
	}
	for t.limit.Wait(ctx) == nil {
		n := rng.IntN(total)
		for _, a := range actions() {
			if n -= a.weight; n >= 0 {
				continue
			}
			if err := t.act(work, conn, rng, a); err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
			break
		}
	}
	return nil
}

// errNobody ends an action for which no client qualifies.
var errNobody = errors.New("nobody to do it to")

// act runs one action in one transaction. Some are rolled back, as users close
// windows; some begin with work that a savepoint takes back.
func (t *traffic) act(ctx context.Context, conn *pgx.Conn, rng *rand.Rand, a action) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx) // after a commit it does nothing
	s := &step{ctx: ctx, tx: tx, rng: rng}
	if rng.IntN(25) == 0 {
		savepoint, err := tx.Begin(ctx)
		if err != nil {
			return err
		}
		// Whatever it did or met is taken back.
		_, _ = calls(&step{ctx: ctx, tx: savepoint, rng: rng})
		if err := savepoint.Rollback(ctx); err != nil {
			return err
		}
	}
	text, err := a.do(s)
	switch {
	case errors.Is(err, errNobody):
		return nil
	case contended(err):
		t.rolledBack.Add(1)
		return nil
	case err != nil:
		return err
	}
	if rng.IntN(20) == 0 {
		t.rolledBack.Add(1)
		t.say(text + " (rolled back)")
		return tx.Rollback(ctx)
	}
	if err := tx.Commit(ctx); contended(err) {
		t.rolledBack.Add(1)
		return nil
	} else if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	t.committed.Add(1)
	t.say(text)
	return nil
}

// contended reports whether a transaction was ended for the sake of another: a
// deadlock, a serialization failure, or a row that went meanwhile.
func contended(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40P01" || pg.Code == "40001" || pg.Code == "23503")
}

// step is what an action works with: one open transaction.
type step struct {
	ctx context.Context
	tx  pgx.Tx
	rng *rand.Rand
}

func (s *step) exec(sql string, args ...any) error {
	_, err := s.tx.Exec(s.ctx, sql, args...)
	return err
}

// row runs a query that gives one row; without one, it is errNobody.
func (s *step) row(sql string, args []any, into ...any) error {
	err := s.tx.QueryRow(s.ctx, sql, args...).Scan(into...)
	if errors.Is(err, pgx.ErrNoRows) {
		return errNobody
	}
	return err
}

// client is somebody to do something to.
type client struct {
	id      int64
	name    string
	balance string
}

func (c client) String() string { return fmt.Sprintf("%s #%d", c.name, c.id) }

// pick chooses a live client for whom cond holds; some clients are busier than
// others, so that sessions meet.
func (s *step) pick(cond string) (client, error) {
	const query = `SELECT c.id, c.name, b.balance::text FROM clients c JOIN clients_balances b ON b.clients_id = c.id
		WHERE c.status <> 'archive' AND (%s) ORDER BY %s LIMIT 1`
	order := "random()"
	if s.rng.IntN(4) == 0 {
		order = "c.id % 20 <> 3, random()"
	}
	var c client
	err := s.row(fmt.Sprintf(query, cond, order), nil, &c.id, &c.name, &c.balance)
	return c, err
}

// move books an amount and returns the new balance.
func (s *step) move(id int64, amount, notes string) (balance string, err error) {
	if err := s.exec("INSERT INTO transactions (clients_id, amount, notes) VALUES ($1, $2, $3)", id, amount, notes); err != nil {
		return "", err
	}
	err = s.row("UPDATE clients_balances SET balance = balance + $2, updated_dt = now() WHERE clients_id = $1 RETURNING balance::text",
		[]any{id, amount}, &balance)
	return balance, err
}

// amount is a positive sum of money below limit, with five decimals.
func (s *step) amount(limit int) string {
	return fmt.Sprintf("%d.%05d", s.rng.IntN(limit), 1+s.rng.IntN(99999))
}

// short cuts trailing zeros of a sum: "12.50000" is shown as 12.50.
func short(sum string) string {
	if whole, decimals, ok := strings.Cut(sum, "."); ok {
		for len(decimals) > 2 && strings.HasSuffix(decimals, "0") {
			decimals = decimals[:len(decimals)-1]
		}
		return whole + "." + decimals
	}
	return sum
}

// action is one thing that happens in a billing system.
type action struct {
	name   string
	weight int // how often, among all
	do     func(*step) (text string, err error)
}

func actions() []action {
	return []action{
		{"rate calls", 22, calls},
		{"charge to zero", 5, chargeToZero},
		{"top up", 16, topUp},
		{"settle a debt", 5, settle},
		{"charge and refund", 3, chargeAndRefund},
		{"invoice", 3, invoice},
		{"sign up", 6, signUp},
		{"edit a client", 7, editClient},
		{"touch a client", 3, touchClient},
		{"rewrite notes", 2, rewriteNotes},
		{"set custom fields", 8, setCustomFields},
		{"clear a custom field", 2, clearCustomField},
		{"add accounts", 5, addAccounts},
		{"edit an account", 5, editAccount},
		{"remove an account", 2, removeAccount},
		{"assign a package", 4, assignPackage},
		{"activate a package", 6, activatePackage},
		{"renew a package", 5, renewPackage},
		{"deactivate a package", 2, deactivatePackage},
		{"close a package", 2, closePackage},
		{"archive a client", 2, archiveClient},
		{"restore a client", 1, restoreClient},
		{"delete a client", 1, deleteClient},
	}
}

// calls charges several clients at once, as a rating engine flushes its sums.
func calls(s *step) (string, error) {
	n := 1 + s.rng.IntN(6)
	// In order of id, so that two runs do not wait for each other in a circle.
	rows, err := s.tx.Query(s.ctx, `SELECT id FROM (SELECT id FROM clients WHERE status = 'active' ORDER BY random() LIMIT $1) c ORDER BY id`, n)
	if err != nil {
		return "", err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return "", err
	}
	for _, id := range ids {
		if _, err := s.move(id, "-"+s.amount(12), "calls"); err != nil {
			return "", err
		}
	}
	if len(ids) == 0 {
		return "", errNobody
	}
	return fmt.Sprintf("rates calls of %d clients", len(ids)), nil
}

func chargeToZero(s *step) (string, error) {
	c, err := s.pick("b.balance > 0")
	if err != nil {
		return "", err
	}
	if err := s.row("SELECT balance::text FROM clients_balances WHERE clients_id = $1 FOR UPDATE", []any{c.id}, &c.balance); err != nil {
		return "", err
	}
	_, err = s.move(c.id, "-"+strings.TrimPrefix(c.balance, "-"), "last calls")
	return fmt.Sprintf("charges %s all it has: %s", c, short(c.balance)), err
}

func topUp(s *step) (string, error) {
	cond := "true"
	if s.rng.IntN(4) > 0 {
		cond = "b.balance <= 0"
	}
	c, err := s.pick(cond)
	if err != nil {
		return "", err
	}
	sum := s.amount(80)
	balance, err := s.move(c.id, sum, "payment")
	return fmt.Sprintf("takes %s from %s, balance %s", short(sum), c, short(balance)), err
}

// settle pays a debt to the last cent.
func settle(s *step) (string, error) {
	c, err := s.pick("b.balance < 0")
	if err != nil {
		return "", err
	}
	var debt string
	if err := s.row("SELECT (-balance)::text FROM clients_balances WHERE clients_id = $1 FOR UPDATE", []any{c.id}, &debt); err != nil {
		return "", err
	}
	_, err = s.move(c.id, debt, "payment in full")
	return fmt.Sprintf("settles with %s: %s", c, short(debt)), err
}

// chargeAndRefund crosses zero and comes back within one transaction.
func chargeAndRefund(s *step) (string, error) {
	c, err := s.pick("b.balance <> 0")
	if err != nil {
		return "", err
	}
	away, back := "-250", "250"
	if strings.HasPrefix(c.balance, "-") {
		away, back = back, away
	}
	for _, sum := range []string{away, back} {
		if _, err := s.move(c.id, sum, "correction"); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("corrects %s to and fro", c), nil
}

// invoice moves the other balance, which no event looks at.
func invoice(s *step) (string, error) {
	c, err := s.pick("true")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("invoices %s", c),
		s.exec("UPDATE clients_balances SET balance_accountant = balance_accountant - $2, updated_dt = now() WHERE clients_id = $1", c.id, s.amount(30))
}

func signUp(s *step) (string, error) {
	first := []string{"Kestrel", "Lumen", "Meridian", "Nimbus", "Orbit", "Pioneer", "Quartz", "Ridge"}
	last := []string{"SIP", "Mobile", "Roaming", "Cloud", "Link"}
	c := client{name: fmt.Sprintf("%s %s %d", first[s.rng.IntN(len(first))], last[s.rng.IntN(len(last))], s.rng.IntN(1000))}
	err := s.row(`INSERT INTO clients (companies_id, name, currencies_id, c_email, tax_id, tags)
		VALUES ($1, $2, $3, $4, $5, '{new}') RETURNING id`,
		[]any{1 + s.rng.IntN(3), c.name, 1 + s.rng.IntN(3), "hello@" + strings.ReplaceAll(c.name, " ", "-") + ".example", fmt.Sprintf("TAX-%06d", s.rng.IntN(1e6))}, &c.id)
	if err != nil {
		return "", err
	}
	balance := "0"
	if s.rng.IntN(2) == 0 {
		balance = s.amount(20)
	}
	if err := s.exec("INSERT INTO clients_balances (clients_id, balance) VALUES ($1, $2)", c.id, balance); err != nil {
		return "", err
	}
	// The form's second page is saved in the same transaction.
	if s.rng.IntN(2) == 0 {
		if err := s.exec("UPDATE clients SET c_company = name || ' Ltd', orig_capacity = 30, m_dt = now() WHERE id = $1", c.id); err != nil {
			return "", err
		}
	}
	if s.rng.IntN(3) == 0 {
		if err := s.exec("INSERT INTO clients_custom_fields VALUES ($1, 'crm_id', $2)", c.id, fmt.Sprintf("C-%d", 9000+c.id)); err != nil {
			return "", err
		}
	}
	if s.rng.IntN(2) == 0 {
		if err := s.account(c.id); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("signs up %s", c), nil
}

func editClient(s *step) (string, error) {
	c, err := s.pick("true")
	if err != nil {
		return "", err
	}
	set := []string{
		"credit = credit + 10", "c_email = 'noc-" + fmt.Sprint(s.rng.IntN(1e6)) + "@example.net'",
		"orig_capacity = COALESCE(orig_capacity, 0) + 1", "tags = array_append(tags, 'edited')",
		"tax_id = 'TAX-" + fmt.Sprint(s.rng.IntN(1e6)) + "'", "autoinvoice_enabled = NOT autoinvoice_enabled",
	}
	n := s.rng.IntN(len(set))
	return fmt.Sprintf("edits %s", c), s.exec("UPDATE clients SET m_dt = now(), "+set[n]+" WHERE id = $1", c.id)
}

// touchClient saves a form in which nothing was changed.
func touchClient(s *step) (string, error) {
	c, err := s.pick("true")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("saves %s unchanged", c), s.exec("UPDATE clients SET m_dt = clock_timestamp() WHERE id = $1", c.id)
}

// rewriteNotes changes only what Billhook is not to read.
func rewriteNotes(s *step) (string, error) {
	c, err := s.pick("true")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("rewrites the notes on %s", c),
		s.exec("UPDATE clients SET notes = (SELECT string_agg(md5(random()::text), ' ') FROM generate_series(1, 150)) WHERE id = $1", c.id)
}

func setCustomFields(s *step) (string, error) {
	c, err := s.pick("true")
	if err != nil {
		return "", err
	}
	keys := []string{"contract_no", "crm_id", "portal_login", "risk_class", "sales_manager"}
	n := 1 + s.rng.IntN(3)
	start := s.rng.IntN(len(keys) - n + 1)
	for _, key := range keys[start : start+n] {
		// Few values, so that some are set to what they are.
		if err := s.exec(`INSERT INTO clients_custom_fields VALUES ($1, $2, $3)
			ON CONFLICT (clients_id, field_key) DO UPDATE SET value = EXCLUDED.value`, c.id, key, fmt.Sprintf("%s-%d", key, s.rng.IntN(4))); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("sets %s of %s", strings.Join(keys[start:start+n], ", "), c), nil
}

func clearCustomField(s *step) (string, error) {
	var id int64
	var key string
	err := s.row("SELECT clients_id, field_key FROM clients_custom_fields ORDER BY random() LIMIT 1", nil, &id, &key)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("clears %s of #%d", key, id),
		s.exec("DELETE FROM clients_custom_fields WHERE clients_id = $1 AND field_key = $2", id, key)
}

// account adds one account.
func (s *step) account(clientID int64) error {
	return s.exec(`INSERT INTO accounts (clients_id, name, auth_type, ips, port, protocol, login, password)
		VALUES ($1, $2, 'ip', ARRAY[$3::inet], 5060, 'udp', $4, md5(random()::text))`,
		clientID, fmt.Sprintf("trunk-%d", s.rng.IntN(1e6)), fmt.Sprintf("203.0.113.%d", s.rng.IntN(256)), fmt.Sprintf("user%d", s.rng.IntN(1e6)))
}

func addAccounts(s *step) (string, error) {
	c, err := s.pick("true")
	if err != nil {
		return "", err
	}
	n := 1 + s.rng.IntN(3)
	for range n {
		if err := s.account(c.id); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("adds %d accounts of %s", n, c), nil
}

func editAccount(s *step) (string, error) {
	var id int64
	if err := s.row("SELECT id FROM accounts ORDER BY random() LIMIT 1", nil, &id); err != nil {
		return "", err
	}
	set := []string{
		"orig_enabled = NOT orig_enabled", "port = COALESCE(port, 5060) + 1", "password = md5(random()::text)",
		fmt.Sprintf("ips = ARRAY['203.0.113.%d'::inet, '2001:db8::%x']", s.rng.IntN(256), s.rng.IntN(1<<16)),
	}
	n := s.rng.IntN(len(set))
	return fmt.Sprintf("edits account %d", id), s.exec("UPDATE accounts SET m_dt = now(), "+set[n]+" WHERE id = $1", id)
}

func removeAccount(s *step) (string, error) {
	var id int64
	if err := s.row("SELECT id FROM accounts ORDER BY random() LIMIT 1", nil, &id); err != nil {
		return "", err
	}
	return fmt.Sprintf("removes account %d", id), s.exec("DELETE FROM accounts WHERE id = $1", id)
}

func assignPackage(s *step) (string, error) {
	c, err := s.pick("true")
	if err != nil {
		return "", err
	}
	err = s.exec(`INSERT INTO clients_packages (clients_id, packages_id, start_dt) SELECT $1, id, now() FROM packages ORDER BY random() LIMIT 1`, c.id)
	return fmt.Sprintf("assigns a package to %s", c), err
}

// subscription chooses a client's package and locks it.
func (s *step) subscription(cond string) (id int64, err error) {
	err = s.row("SELECT id FROM clients_packages WHERE "+cond+" ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED", nil, &id)
	return id, err
}

func activatePackage(s *step) (string, error) {
	id, err := s.subscription("condition = 'new' AND status = 'pending'")
	if err != nil {
		return "", err
	}
	var clientID int64
	err = s.row(`UPDATE clients_packages cp SET condition = 'activated', status = 'active', period_start_dt = now(),
		period_stop_dt = now() + p.period, m_dt = now() FROM packages p WHERE cp.id = $1 AND p.id = cp.packages_id RETURNING cp.clients_id`,
		[]any{id}, &clientID)
	if err != nil {
		return "", err
	}
	// Its fee is charged in the same transaction.
	_, err = s.move(clientID, "-"+s.amount(10), "activation fee")
	return fmt.Sprintf("activates package %d of #%d", id, clientID), err
}

func renewPackage(s *step) (string, error) {
	id, err := s.subscription("condition = 'activated' AND status = 'active'")
	if err != nil {
		return "", err
	}
	var clientID int64
	err = s.row(`UPDATE clients_packages cp SET period_start_dt = period_stop_dt, period_stop_dt = period_stop_dt + p.period, m_dt = now()
		FROM packages p WHERE cp.id = $1 AND p.id = cp.packages_id RETURNING cp.clients_id`, []any{id}, &clientID)
	if err != nil {
		return "", err
	}
	_, err = s.move(clientID, "-"+s.amount(10), "subscription fee")
	return fmt.Sprintf("renews package %d of #%d", id, clientID), err
}

// deactivatePackage ends the service; half of the time for good, in two steps of
// one transaction.
func deactivatePackage(s *step) (string, error) {
	id, err := s.subscription("condition = 'activated'")
	if err != nil {
		return "", err
	}
	if err := s.exec("UPDATE clients_packages SET condition = 'deactivated', m_dt = now() WHERE id = $1", id); err != nil {
		return "", err
	}
	if s.rng.IntN(2) == 0 {
		return fmt.Sprintf("deactivates package %d", id), nil
	}
	return fmt.Sprintf("deactivates and closes package %d", id),
		s.exec("UPDATE clients_packages SET status = 'archive', stop_dt = now() WHERE id = $1", id)
}

func closePackage(s *step) (string, error) {
	id, err := s.subscription("status <> 'archive'")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("closes package %d", id),
		s.exec("UPDATE clients_packages SET status = 'archive', stop_dt = now(), m_dt = now() WHERE id = $1", id)
}

func archiveClient(s *step) (string, error) {
	c, err := s.pick("true")
	if err != nil {
		return "", err
	}
	set := ""
	if s.rng.IntN(3) == 0 {
		set = ", name = name || ' (closed)'"
	}
	return fmt.Sprintf("archives %s", c), s.exec("UPDATE clients SET status = 'archive', m_dt = now()"+set+" WHERE id = $1", c.id)
}

func restoreClient(s *step) (string, error) {
	var id int64
	if err := s.row("UPDATE clients SET status = 'active' WHERE id = (SELECT id FROM clients WHERE status = 'archive' ORDER BY random() LIMIT 1) RETURNING id", nil, &id); err != nil {
		return "", err
	}
	return fmt.Sprintf("restores #%d", id), nil
}

// deleteClient takes a client away with all that hangs on it.
func deleteClient(s *step) (string, error) {
	c, err := s.pick("c.status <> 'archive'")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("deletes %s", c), s.exec("DELETE FROM clients WHERE id = $1", c.id)
}

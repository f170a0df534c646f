package replication

import (
	"encoding/binary"
	"time"

	"github.com/billhook/billhook/internal/wal"
)

// Chunk is a run of whole replication frames in the order they came. The
// receiver owns it until Release, and should release it before it waits for the
// disk: the connection reads no further when a few are out.
type Chunk struct {
	session *Session
	buf     *buffer
	data    []byte // whole protocol messages, what Next has given out removed
	size    int
}

// Session returns the connection that the chunk came over. When it differs from
// the chunk before, the transaction that was open then is void: the server sends
// it again from its beginning, and a new wal.Decoder is needed.
func (c *Chunk) Session() *Session { return c.session }

// Size returns the chunk's bytes, protocol headers included.
func (c *Chunk) Size() int { return c.size }

// Next returns the payload of the next CopyData, which wal.ParseFrame reads. It
// aliases the chunk and is valid until Release.
func (c *Chunk) Next() (frame []byte, ok bool) {
	for len(c.data) >= 5 {
		kind := c.data[0]
		end := 1 + int(binary.BigEndian.Uint32(c.data[1:]))
		frame, c.data = c.data[5:end:end], c.data[end:]
		if kind == 'd' {
			return frame, true
		}
	}
	return nil, false
}

// Release gives the memory back. The chunk and its frames must not be used after.
func (c *Chunk) Release() {
	if c.buf == nil {
		panic("replication: a chunk was released twice")
	}
	buf := c.buf
	c.buf, c.data = nil, nil
	buf.release()
}

// buffer is one of a pool's fixed number of buffers. Its memory is made at first
// use.
type buffer struct {
	pool *pool
	b    []byte
}

type pool struct {
	free chan *buffer
	size int
}

func newPool(count, size int) *pool {
	p := &pool{free: make(chan *buffer, count), size: size}
	for range count {
		p.free <- &buffer{pool: p}
	}
	return p
}

// ready gives a buffer that came from p.free its memory.
func (p *pool) ready(b *buffer) *buffer {
	if b.b == nil {
		b.b = make([]byte, p.size)
	}
	return b
}

// grow makes room for a message of n bytes, keeping the first used ones.
func (b *buffer) grow(n, used int) {
	bigger := make([]byte, n)
	copy(bigger, b.b[:used])
	b.b = bigger
}

func (b *buffer) release() {
	if len(b.b) > b.pool.size {
		b.b = nil // was grown for one huge message
	}
	b.pool.free <- b
}

// Session is one replication connection, after all checks. It is immutable.
type Session struct {
	Number         int // 1 for the first of its Client
	SystemID       string
	Timeline       uint32
	Database       string
	ServerVersion  int // server_version_num, such as 150018
	Slot           string
	Publication    string
	PublicationOID uint32
	PID            uint32 // of the walsender
	// Start is where streaming begins: the durable position, or on first attach
	// the slot's. All transactions that end before it, and no others, are left out.
	Start wal.LSN
	// SlotCreated says that this session made the slot.
	SlotCreated bool
	// Doubted goes to wal.Decoder.Doubt.
	Doubted []uint32

	senderTimeout time.Duration // wal_sender_timeout as it holds for this connection
	leaves        []uint32      // partitions of the mapped tables, sorted
}

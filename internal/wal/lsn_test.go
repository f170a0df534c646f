package wal

import "testing"

func FuzzParseLSN(f *testing.F) {
	for _, s := range []string{"0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF", "1/", "/1", "16/b374d848", "00000016/B374D848"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLSN(s)
		if err != nil {
			return
		}
		again, err := ParseLSN(l.String())
		if err != nil || again != l || l.Compare(again) != 0 {
			t.Errorf("ParseLSN(%q) = %s, and again %s, %v", s, l, again, err)
		}
	})
}

func TestLSNString(t *testing.T) {
	for s, want := range map[string]LSN{"0/0": 0, "16/B374D848": 0x16B374D848, "1/0": 1 << 32, "FFFFFFFF/FFFFFFFF": 1<<64 - 1} {
		if l, err := ParseLSN(s); err != nil || l != want || l.String() != s {
			t.Errorf("ParseLSN(%q) = %d, %v, prints %s", s, l, err, l)
		}
	}
}

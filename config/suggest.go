package config

import "strings"

// nearest returns the candidate that word was probably meant to be, or "".
func nearest(word string, candidates []string) string {
	fold := func(s string) string {
		return strings.NewReplacer("-", "_", " ", "_").Replace(strings.ToLower(s))
	}
	best, distance := "", 1+min(3, max(1, len(word)/3))
	for _, c := range candidates {
		if fold(c) == fold(word) {
			return c
		}
		if short, long := min(len(c), len(word)), max(len(c), len(word)); short >= 3 && long-short <= 4 && best == "" &&
			fold(c)[:short] == fold(word)[:short] {
			best = c // one begins the other; a closer one may still come
			continue
		}
		if abs(len(c)-len(word)) >= distance || len(word) > 80 {
			continue
		}
		if n := edits(fold(word), fold(c)); n < distance {
			best, distance = c, n
		}
	}
	return best
}

func abs(n int) int {
	if n < 0 {
		return -n
	}
	return n
}

// edits is the number of letters to insert, delete, replace or swap with their
// neighbour to get from a to b.
func edits(a, b string) int {
	s, t := []rune(a), []rune(b)
	rows := make([][]int, len(s)+1)
	for i := range rows {
		rows[i] = make([]int, len(t)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(s); i++ {
		for j := 1; j <= len(t); j++ {
			cost := 1
			if s[i-1] == t[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && s[i-1] == t[j-2] && s[i-2] == t[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(s)][len(t)]
}

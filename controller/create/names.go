package create

import (
	"slices"
	"strings"
)

// names returns n different random names, of which a run takes the first free one.
func names(n int) []string {
	out := make([]string, 0, n)
	for _, b := range [][]byte{random(), random()} {
		for i := 0; i+1 < len(b) && len(out) < n; i += 2 {
			c := adjectives[int(b[i])%len(adjectives)] + "_" + surnames[int(b[i+1])%len(surnames)]
			if slices.Contains(out, c) {
				c += string('0' + b[i]%10)
			}
			out = append(out, c)
		}
	}
	return out
}

var adjectives = strings.Fields(`able agile amber ample bold brave breezy bright brisk calm candid cheery clever cosmic crisp daring deft eager early earnest exact fair famous fleet fond frank fresh gentle gifted glad golden grand happy hardy honest humble jolly keen kind lively lucid lucky mellow merry mighty modest neat nimble noble placid polite proud quick quiet rapid ready robust serene sharp silent sincere sleek snappy solid spry steady stoic sunny swift tidy vivid warm wise witty zesty`)
var surnames = strings.Fields(`abel backus bohr boole borg cantor cerf church codd cray curie darwin dijkstra engelbart erdos euler faraday fermat fermi feynman floyd franklin galois gauss germain godel goodall haken hamilton hamming hilbert hoare hopper huffman hypatia jacquard kahn kalman kepler kernighan knuth kolmogorov lamport lamarr lampson lovelace markov maxwell mccarthy meitner mendel milner mirzakhani napier nash naur newell newton noether pascal perlman poincare postel ramanujan raymond ritchie shannon stallman sutherland tarjan tesla thompson turing volta wilkes wirth wozniak`)

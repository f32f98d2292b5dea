# BLEU and NIST by the definition that the E2E scorer's mteval-v13a-sig.pl documents, written anew for the tests.
# Perl, as what a score depends on is Perl's own: which blanks \s takes, which letters are lower-cased, that "0" is false.
#
# Input, one line each: "segment<TAB>output", then "reference<TAB>text" for each of its references; "score" ends a set.
# Output: a line "BLEU NIST" for each set. Needs no module.
use strict;
use warnings;

binmode STDIN,  ':utf8';
binmode STDOUT, ':utf8';
my @segments;
while (my $line = <STDIN>) {
    chomp $line;
    my ($what, $text) = split /\t/, $line, 2;
    if    ($what eq 'segment')   { push @segments, { output => ngrams($text), references => [] } }
    elsif ($what eq 'reference') { push @{ $segments[-1]{references} }, ngrams($text) }
    else                         { set_is_read() }
}

sub set_is_read {
    for my $segment (@segments) { $segment->{matched} = [map { matched($_, $segment) } 0 .. 5] }
    printf "%.17g %.17g\n", bleu(), nist();
    @segments = ();
}

sub words {
    my ($text) = @_;
    my %meaning = ('<skipped>' => '', '&quot;' => '"', '&amp;' => '&', '&lt;' => '<', '&gt;' => '>');
    $text =~ s/\Q$_\E/$meaning{$_}/g for '<skipped>', '&quot;', '&amp;', '&lt;', '&gt;';
    $text = " $text ";
    $text =~ s/([A-Z]+)/\L$1/g;
    $text =~ s/(?![',.-])([[:punct:]])/ $1 /ga;
    $text =~ s/(\D)([,.])/$1 $2 /ga;
    $text =~ s/([,.])(\D)/ $1 $2/ga;
    $text =~ s/(?<=[0-9])-/ - /g;
    return grep { length } split /\s+/, $text;
}

sub ngrams {    # a hash for each order, n-gram => count; in the place of order 0 the number of words
    my @words = words(@_);
    my @ngrams = (scalar @words, map { {} } 1 .. 5);
    for my $n (1 .. 5) { $ngrams[$n]{ join ' ', @words[$_ - $n .. $_ - 1] }++ for $n .. @words }
    return \@ngrams;
}

sub matched {    # n-gram => how many of the output's are in the reference that has most of them
    my ($n, $segment) = @_;
    return undef unless $n;
    my $made = $segment->{output}[$n];
    my %matched;
    for my $reference (map { $_->[$n] } @{ $segment->{references} }) {
        for my $ngram (grep { $reference->{$_} } keys %$made) {
            my $common = $made->{$ngram} < $reference->{$ngram} ? $made->{$ngram} : $reference->{$ngram};
            $matched{$ngram} = $common if $common > ($matched{$ngram} || 0);
        }
    }
    return \%matched;
}

sub made {    # n-grams of one order in all outputs
    my ($n) = @_;
    my $made = 0;
    for my $length (map { $_->{output}[0] } @segments) { $made += $length - $n + 1 if $length >= $n }
    return $made;
}

sub bleu {
    my ($logarithms, $without_match, $closest) = (0, 0, 0);
    my $length = made(1) or return 0;
    for my $segment (@segments) {
        my ($first, @rest) = map { $_->[0] } @{ $segment->{references} };
        my $output = $segment->{output}[0];
        $closest += (sort { abs($a - $output) <=> abs($b - $output) || $a <=> $b } $first, grep { $_ } @rest)[0];
    }
    for my $n (1 .. 4) {
        my $made = made($n) or next;
        my $matched = 0;
        for my $segment (@segments) { $matched += $_ for values %{ $segment->{matched}[$n] } }
        $logarithms += log(($matched || 0.5 ** ++$without_match) / $made);
    }
    return exp($logarithms / 4 + ($length < $closest ? 1 - $closest / $length : 0));
}

sub nist {
    my $length = made(1) or return 0;
    my ($total, $references, $score) = (0, 0, 0);
    my @seen = map { {} } 0 .. 5;
    for my $reference (map { @{ $_->{references} } } @segments) {
        $total += $reference->[0];
        $references++ if $reference->[0];
        for my $n (1 .. 5) { $seen[$n]{$_} += $reference->[$n]{$_} for keys %{ $reference->[$n] } }
    }
    for my $n (1 .. 5) {
        my $information = 0;
        for my $matched (map { $_->{matched}[$n] } @segments) {
            for my $ngram (keys %$matched) {
                my ($context) = $ngram =~ /(.*) /;
                my $of = $context ? $seen[$n - 1]{$context} : $total;
                $information += $matched->{$ngram} * log($of / $seen[$n]{$ngram}) / log(2);
            }
        }
        $score += $information / (made($n) || 1);
    }
    my $ratio = $length / $total * ($references / @segments);    # of the mean reference; 2/3 of it halves the score
    return $ratio < 1 ? $score * 0.5 ** ((log($ratio) / log(1.5)) ** 2) : $score;
}

# Net::HTTP.  client.rb PORT PLAN keepalive|fresh CONNECTIONS
require "json"
require "net/http"
require "stringio"

port, plan_file, mode, connections = ARGV
plan = File.readlines(plan_file, chomp: true).map { |line| line.split("\t") }
fresh = mode == "fresh"
truth = Queue.new

def now_ns = Process.clock_gettime(Process::CLOCK_MONOTONIC, :nanosecond)

def build(method, path, body_bytes, chunked, fresh)
  request = (method == "POST" ? Net::HTTP::Post : Net::HTTP::Get).new(path)
  request["Connection"] = "close" if fresh
  if method == "POST" && chunked
    request["Transfer-Encoding"] = "chunked"
    request.body_stream = StringIO.new("x" * body_bytes)
    request.content_type = "application/octet-stream"
  elsif method == "POST"
    request.body = "x" * body_bytes
    request.content_type = "application/octet-stream"
  end
  request
end

puts "ready"
$stdout.flush
$stdin.gets
count = connections.to_i
threads = (0...count).map do |first|
  Thread.new do
    http = Net::HTTP.new("127.0.0.1", port.to_i, nil)
    if ENV["ZOO_TLS_CA"]
      http.use_ssl = true
      http.ca_file = ENV["ZOO_TLS_CA"]
    end
    http.max_retries = 0 # a retry of its own would be a request that no truth knows of
    http.keep_alive_timeout = 30
    http.start unless fresh
    (first...plan.size).step(count) do |at|
      n, method, path, body_bytes, chunked = plan[at]
      request = build(method, path, body_bytes.to_i, chunked == "1", fresh)
      start_ns = now_ns
      status, bytes, error = 0, 0, ""
      begin
        response = http.request(request)
        status = response.code.to_i
        bytes = response.body.to_s.bytesize
      rescue StandardError => e
        error = e.message
      end
      truth << { n: n.to_i, method: method, path: path, status: status, start_ns: start_ns, end_ns: now_ns,
                 bytes: bytes, error: error }
    end
    http.finish if http.started?
  end
end
threads.each(&:join)
puts truth.pop.to_json until truth.empty?
